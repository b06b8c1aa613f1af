"""From a classifier's class activation maps (CAMs) to the pseudo masks that stage 2 learns from."""
