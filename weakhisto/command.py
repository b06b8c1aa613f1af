"""The command ``weakhisto``: ``python -m scripts`` of the bundle that the package finds."""


def main() -> None:
    """Run the command of ``sys.argv``."""
    from scripts.commands.app import main as run_command  # importable since the package is imported

    run_command()
