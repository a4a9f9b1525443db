"""HTTP: OpenAI's interface in front of an engine. Imports the engine, never a kernel."""
