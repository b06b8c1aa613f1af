"""The command line, ``python -m scripts COMMAND``: lightweight modules, so that help appears at once."""
