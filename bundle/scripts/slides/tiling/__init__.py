"""Training patches from whole slides that are labelled as a whole."""
