"""Disk access: atomic writes, reading untrusted files, images."""
