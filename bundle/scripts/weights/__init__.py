"""Load, save, convert and import weights."""
