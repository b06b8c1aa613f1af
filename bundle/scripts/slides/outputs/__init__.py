"""What is written of a slide: areas, class maps as pyramids, pictures."""
