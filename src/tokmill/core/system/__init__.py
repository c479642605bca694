"""What only this machine can answer or do: durable files, memory, page cache, child processes."""
