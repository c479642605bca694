"""One file an input format."""
