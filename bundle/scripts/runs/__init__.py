"""A run: its folder and record, its stages, the options of its command line, the device it works on."""
