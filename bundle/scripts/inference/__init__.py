"""Masks of new images."""
