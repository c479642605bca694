"""From files to batches: bytes from anywhere, then one file a format."""
