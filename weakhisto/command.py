"""The command ``weakhisto``: the bundle's ``python -m scripts``."""


def main() -> None:
    """Run the command in ``sys.argv``."""
    from scripts.commands.app import main as run_command  # importable once weakhisto is imported

    run_command()
