"""Text to ids and back: tokenizers, chat templates, stop strings."""
