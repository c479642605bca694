"""Outputs without copies: `dedup`, pass by pass."""
