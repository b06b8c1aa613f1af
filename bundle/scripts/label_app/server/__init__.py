"""The MONAI Label server app."""
