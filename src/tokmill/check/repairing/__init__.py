"""Making a damaged output whole again."""
