"""Whole slides: from a slide file to maps of its tissues, annotations for QuPath and areas."""
