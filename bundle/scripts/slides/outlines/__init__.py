"""Outlines of the classes: polygons, GeoJSON."""
