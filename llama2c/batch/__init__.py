"""A file of requests: read, answered, written and resumed. Imports the engine, and of the server only its pure modules."""
