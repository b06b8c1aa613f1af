"""Turn a classifier's class activation maps (CAMs) into the pseudo masks that stage 2 is trained on."""
