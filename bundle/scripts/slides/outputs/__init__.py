"""Output files of a slide: areas, class maps as pyramids, images."""
