"""One file a tokenizer library."""
