"""A run: its folder and record, its stages, its command-line options, its device."""
