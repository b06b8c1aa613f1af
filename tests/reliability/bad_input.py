"""What a person reads when a command stops, and files that are not what they should be."""

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.runs.plain_errors import plain_cause


@dataclass(frozen=True)
class Case:
    """A malformed input.

    Args:
        name: what is wrong.
        spoil: given a folder that is in order, makes the fault; gives what the entry point needs, if anything.
        sentence: parts of the message in their order: file or key, rule, and value or remedy.
    """

    name: str
    spoil: Any
    sentence: tuple[str, ...]


def table(*rows):
    """Cases as parameters of a test, by their names."""
    return [pytest.param(Case(name, spoil, sentence), id=name) for name, spoil, *sentence in rows]


def stopped(action, *arguments, **settings):
    """The message with which ``action`` stops; the test fails if it does not stop, or only a traceback would tell."""
    try:
        action(*arguments, **settings)
    except Exception as error:
        plain = plain_cause(error)
        assert plain is not None, f"a traceback of {error!r}"
        return str(plain)
    raise AssertionError("it did not stop")


def require_sentence(message, case):
    """Assert that all parts of a case's sentence are in a message, one after the other, and no traceback is."""
    assert "Traceback" not in message
    position = 0
    for part in case.sentence:
        found = message.find(part, position)
        assert found >= 0, f"{part!r} is not, or not in its place, in {message!r}"
        position = found + len(part)


def png(width, height, kind=2, bits=8, rows=b""):
    """The bytes of a PNG with a header of any size, whatever its ``rows`` of pixels hold; kind 0 is grey, 2 RGB."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">2I5B", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_bytes(name, content):
    """A fault: a file with other bytes."""
    return lambda folder: (folder / name).write_bytes(content)


def write_picture(name, mode="RGB", size=(8, 8), **options):
    """A fault: a picture of another mode or size."""
    return lambda folder: Image.new(mode, size, 1 if mode not in ("RGB", "RGBA", "CMYK") else None).save(
        folder / name, **options
    )


def write_pictures(name, mode="RGB", size=(8, 8)):
    """A fault: a file of three pictures of one size."""

    def spoil(folder):
        first, *others = [Image.new(mode, size, value) for value in (0, 1, 2)]
        first.save(folder / name, save_all=True, append_images=others)

    return spoil


def cut(name, size=(8, 8)):
    """A fault: a file of noise, which does not compress, without its end."""

    def spoil(folder):
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])

    return spoil


def write_json(name, content):
    """A fault: a file with other JSON, or with ``content`` itself if it is text or bytes."""
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    return write_bytes(name, content if isinstance(content, bytes) else content.encode())


def both(*faults):
    """A fault made of several; its result is the last one's."""
    return lambda folder: [fault(folder) for fault in faults][-1]


def remove(name):
    """A fault: a file that is not there."""
    return lambda folder: Path(folder / name).unlink()
