"""Files as MXNet writes them, packed here independently of the reader."""

import struct

import numpy as np

FORMS = {"V1": 0xF993FAC8, "V2": 0xF993FAC9, "V3": 0xF993FACA, "oldest": None}
TYPES = [np.float32, np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64]  # by MXNet's number


def array_bytes(array, form="V2"):
    """An array as MXNet writes it."""
    content = b""
    if FORMS[form] is not None:
        content += struct.pack("<I", FORMS[form])
    if form in ("V2", "V3"):
        content += struct.pack("<i", 0)
    content += struct.pack("<I", array.ndim)
    content += struct.pack(f"<{array.ndim}{'I' if form == 'oldest' else 'q'}", *array.shape)
    content += struct.pack("<iii", 1, 0, TYPES.index(array.dtype.type))
    return content + array.tobytes()


def params_bytes(arrays, form="V2", magic=0x112, reserved=0):
    content = struct.pack("<QQQ", magic, reserved, len(arrays))
    content += b"".join(array_bytes(array, form) for array in arrays.values())
    content += struct.pack("<Q", len(arrays))
    return content + b"".join(struct.pack("<Q", len(name.encode())) + name.encode() for name in arrays)
