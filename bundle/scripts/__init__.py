"""Code of the bundle: networks, losses, transforms, data, engines' handlers and commands, wired by ``configs/*.json``."""
