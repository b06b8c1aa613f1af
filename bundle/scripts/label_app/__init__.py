"""A MONAI Label app that proposes tissue outlines, learns from corrections and picks what to annotate next."""
