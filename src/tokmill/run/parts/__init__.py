"""Outputs made in parts, here or on a cluster."""
