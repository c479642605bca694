"""What a run will produce and need, estimated from samples."""
