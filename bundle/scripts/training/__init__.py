"""What trains a network: the step, augmentation, handlers, groups of parameters."""
