"""Write files atomically: a reader, or a run after a crash, sees the whole file or none of it."""

import csv
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

LEFTOVER = ".partial-"
NAMES = "surrogateescape"  # names of files outside the locale's encoding are written as the bytes that they are


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the temporary folders that killed processes left anywhere in ``folder``."""
    for path in Path(folder).rglob(f".*{LEFTOVER}*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers_of(path: str | os.PathLike) -> None:
    """Remove the temporary folders that processes killed while writing ``path`` left beside it."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}{LEFTOVER}*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that is renamed to ``path`` if the block ends without an error.

    Works for files and for folders that do not exist yet. The parent folder of ``path`` is created if needed.

    Raises:
        OSError: whatever the block raises, for instance when the disk is full; ``path`` is added if no file is named.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}{LEFTOVER}") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write ``content`` as indented JSON; NaN and infinity, which JSON does not have, raise a ``ValueError``."""
    text = json.dumps(content, indent=4, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=NAMES)


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table as CSV for spreadsheets, in UTF-8 with a byte order mark; ``None`` becomes an empty cell."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8-sig", errors=NAMES) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_checkpoint(path: str | os.PathLike, content: Any) -> None:
    """Write ``content``, which consists of tensors and plain Python values, with ``torch.save``."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # with a path, torch hides why writing fails
        try:
            torch.save(content, file)
        except RuntimeError as error:  # after a failed write torch closes the archive, which fails again
            raise (error.__context__ or error) from None


def write_state_dict(path: str | os.PathLike, state: Mapping[str, torch.Tensor]) -> None:
    """Write a state dict: as safetensors if the suffix is ``.safetensors``, else with ``torch.save``."""
    if Path(path).suffix.lower() != ".safetensors":
        write_checkpoint(path, {name: tensor.detach().cpu() for name, tensor in state.items()})
        return
    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with atomic_path(path) as temporary:  # safetensors rejects tensors that share memory, hence the clones
        temporary.write_bytes(safetensors.torch.save(own))
