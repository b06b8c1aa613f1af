"""What touches the disk: atomic writes, files that others made, pictures."""
