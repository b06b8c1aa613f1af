"""Whole-slide images: from a slide file to tissue maps, annotations for QuPath and areas."""
