"""Read MXNet's NDArray files (``.params``) with NumPy, since MXNet itself can no longer be installed.

A file is, in little endian: uint64 0x112, uint64 0, uint64 n, then n arrays, then uint64 n, then n names (uint64 length
and UTF-8). An array is a header in one of four forms, distinguished by its first uint32, then the device (two int32),
the type (int32) and the values.
"""

import math
from pathlib import Path

import numpy as np

from ..errors import BundleError

FILE_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")  # by MXNet's type number
MAX_DIMENSIONS = 32  # more than any real array; in the oldest form the first uint32 is the number of dimensions


class Reader:
    """Read values from a file's bytes in order, never reading or allocating more than the file holds.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
        self.position = 0

    def refuse(self, rule: str) -> BundleError:
        """The error that states what the file must contain at this position."""
        return BundleError(
            f"{self.path} must be an MXNet NDArray file: {rule} (at byte {self.position} of {len(self.content)}). "
            "Download it again, and check that it is a .params file."
        )

    def take(self, dtype: str, count: int) -> np.ndarray:
        """The next ``count`` values, (count,), a view of the file."""
        size = np.dtype(dtype).itemsize * count
        if not 0 <= size <= len(self.content) - self.position:
            raise self.refuse(f"{count} values of {np.dtype(dtype)} must follow, but the file ends too early")
        values = self.content[self.position : self.position + size].view(dtype)
        self.position += size
        return values

    def number(self, dtype: str) -> int:
        """The next value."""
        return int(self.take(dtype, 1)[0])


def read_params(path: str | Path) -> dict[str, np.ndarray]:
    """Read the named arrays of an NDArray file.

    Returns:
        The arrays by name, in the file's order: ``{"arg:conv1a_weight": (64, 3, 3, 3) float32, ...}``.

    Raises:
        FileNotFoundError: if there is no such file.
        BundleError: if it is truncated, has trailing bytes, or is not an NDArray file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be an MXNet NDArray file, but it does not exist; check the path.")
    reader = Reader(path)
    if reader.number("<u8") != FILE_MAGIC or reader.number("<u8") != 0:
        raise reader.refuse("it must start with 0x112 and 0")
    count = reader.number("<u8")
    arrays = []
    for _ in range(count):  # a bogus count runs into the end of the file
        arrays.append(read_array(reader))
    if reader.number("<u8") != count:
        raise reader.refuse(f"{count} names must follow the {count} arrays")
    names = [read_name(reader) for _ in range(count)]
    if len(set(names)) < count:
        raise reader.refuse("names must differ")
    if reader.position < len(reader.content):
        raise reader.refuse("nothing may follow the names")
    return dict(zip(names, arrays, strict=True))


def read_array(reader: Reader) -> np.ndarray:
    """Read one array, header and values, in any of the four forms."""
    form = reader.number("<u4")
    if form in (V2, V3) and reader.number("<i4") != 0:
        raise reader.refuse("arrays must be dense, storage type 0")
    dimensions = reader.number("<u4") if form in (V1, V2, V3) else form
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise reader.refuse(f"an array must have 1 to {MAX_DIMENSIONS} dimensions, got {dimensions}")
    shape = [int(side) for side in reader.take("<i8" if form in (V1, V2, V3) else "<u4", dimensions)]
    if min(shape) < 1:
        raise reader.refuse(f"an array must have dimensions of size 1 or more, got {shape}")
    reader.take("<i4", 2)  # the device it was saved from
    kind = reader.number("<i4")
    if not 0 <= kind < len(DTYPES):
        raise reader.refuse(f"an array must have a type of 0 to {len(DTYPES) - 1}, got {kind}")
    return reader.take(DTYPES[kind], math.prod(shape)).reshape(shape).copy()


def read_name(reader: Reader) -> str:
    """Read one name."""
    characters = reader.take("u1", reader.number("<u8")).tobytes()
    try:
        return characters.decode()
    except UnicodeDecodeError as error:
        raise reader.refuse("names must be UTF-8") from error
