"""From a data set's folder to batches: classes, mask values, items, transforms, checks."""
