"""Annotation formats: label files, outlines, class maps."""
