"""Open slides and read them at any resolution."""
