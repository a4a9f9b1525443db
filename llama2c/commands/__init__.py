"""The command line: flags in, bytes out."""
