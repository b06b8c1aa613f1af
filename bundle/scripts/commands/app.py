"""The command-line app: the commands' names, their order in the help, and their exit status."""

import io
import os
import sys

import typer
from typer import Context
from typer.core import TyperCommand

from . import data, results, sharing, training

SETTINGS = {"help_option_names": ["-h", "--help"]}
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # options that a command does not define


class Command(TyperCommand):
    """A command whose options may also be spelled like MONAI's: with underscores, flags with ``True`` or ``False``."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse as Click does, once known options are spelled as Click has them."""
        known = {name: parameter for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        spelled: list[str] = []
        for word in args:
            name, sign, value = word.partition("=")
            hyphens = name.replace("_", "-")
            flag = known.get(hyphens if sign else spelled[-1] if spelled else "")
            if getattr(flag, "is_flag", False) and (value if sign else word) in ("True", "False"):
                spelled = spelled if sign else spelled[:-1]
                spelled += flag.opts[:1] if (value if sign else word) == "True" else flag.secondary_opts[:1]
            else:
                spelled.append(f"{hyphens}{sign}{value}" if hyphens in known else word)
        return super().parse_args(ctx, spelled)


app = typer.Typer(
    help="Tissue masks from image-level labels: train a segmentation network on labelled patches, and segment new "
    "images and slides with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
weights = typer.Typer(help="Import published weights; convert weight files.", no_args_is_help=True)

for panel, commands in {
    "Train": {"train": training.train, "adapt": training.adapt, "experiment": training.experiment},
    "Use": {"segment": results.segment, "evaluate": results.evaluate, "report": results.report, "label": results.label},
    "Data": {"new-dataset": data.new_dataset, "prepare": data.prepare, "check": data.check, "demo": data.demo},
    "Share": {"export": sharing.export, "deploy": sharing.deploy, "push": sharing.push},
}.items():
    for name, function in commands.items():
        passed_on = PASSED_ON if name in ("train", "adapt", "label") else {}
        app.command(name, rich_help_panel=panel, cls=Command, context_settings=SETTINGS | passed_on)(function)
weights.command("import", cls=Command, context_settings=SETTINGS)(sharing.import_weights)
weights.command("convert", cls=Command, context_settings=SETTINGS)(sharing.convert)
app.add_typer(weights, name="weights", rich_help_panel="Share")


def main() -> None:
    """Run the command in ``sys.argv``; usage errors exit with status 2, all others with 1."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":  # names may be any text
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception:
        from ..runs import plain_errors  # which imports torch

        plain_errors.report(*sys.exc_info())
        sys.exit(1)
