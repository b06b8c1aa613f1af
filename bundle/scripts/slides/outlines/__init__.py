"""Class outlines: polygons and GeoJSON."""
