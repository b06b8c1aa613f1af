"""Load data sets: classes, mask values, items, transforms, batches, checks."""
