"""Code of the bundle: networks, losses, transforms, data, handlers and commands, wired by ``configs/*.json``."""
