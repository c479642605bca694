"""Records, settings, errors and contracts that every room uses."""
