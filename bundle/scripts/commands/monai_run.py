"""A MONAI run as a command that people can read, copy and change."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer


@dataclass(frozen=True)
class MonaiRun:
    """``python -m monai.bundle run`` in a bundle's folder.

    Args:
        root: the folder of the bundle or of a run.
        run_id: the config section to run; MONAI's default is ``run``.
        config_files: merged from left to right; shown relative to ``root`` if inside it.
        settings: overrides by key; those that are ``None`` are left out.
        words: further command-line arguments, passed on unchanged.
    """

    root: Path
    run_id: str
    config_files: Sequence[str | Path]
    settings: Mapping[str, Any] = field(default_factory=dict)
    words: Sequence[str] = ()

    @property
    def command(self) -> list[str]:
        """The command's arguments, to be run in ``root``."""
        files = [self._short(path) for path in self.config_files]
        command = [sys.executable, "-m", "monai.bundle", "run", *([] if self.run_id == "run" else [self.run_id])]
        command += ["--config_file", files[0] if len(files) == 1 else f"[{','.join(map(repr, files))}]"]
        for name, value in self.settings.items():
            if value is not None:
                command += [f"--{name}", as_monai_reads(value)]
        return [*command, *self.words]

    def _short(self, path: str | Path) -> str:
        path = Path(path)
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def show(self) -> None:
        """Print the command as a line of shell."""
        place = "" if self.root.resolve() == Path.cwd() else f"cd {shlex.quote(str(self.root))} && "
        typer.echo(f"{place}python {' '.join(map(quoted, self.command[1:]))}")

    def start(self) -> None:
        """Print the command and replace this process with it."""
        self.show()
        sys.stdout.flush()
        os.environ["PYTHONUTF8"] = "1"  # MONAI and others open files in the locale's encoding
        os.chdir(self.root)
        os.execv(sys.executable, self.command)


def quoted(word: str) -> str:
    """Quote ``word`` for a shell, in double quotes where they read better."""
    if "'" not in word or "!" in word:
        return shlex.quote(word)
    return '"' + re.sub(r'(["$`\\])', r"\\\1", word) + '"'


def as_monai_reads(value: Any) -> str:
    """Format ``value`` so that MONAI's command line (Fire) reads it back; strings that look like numbers are quoted."""
    from fire.parser import DefaultParseValue

    text = str(value)
    if not isinstance(value, (str, Path)):
        return text
    return text if DefaultParseValue(text) == text else repr(text)
