"""Training: the step, augmentation, handlers, optimiser parameter groups."""
