"""Segmentation of new images."""
