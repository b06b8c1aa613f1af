"""What annotators send and get: label files, outlines, class maps."""
