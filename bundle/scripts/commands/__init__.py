"""The command line, ``python -m scripts COMMAND``: light modules, so that help comes at once."""
