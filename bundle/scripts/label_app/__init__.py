"""A MONAI Label app that proposes tissue outlines, learns from corrections and selects what to annotate next."""
