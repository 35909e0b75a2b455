"""The one place that opens files of strangers: regular files alone, none larger than its kind ever is.

A pipe or a device would block or never end, and a sparse file claims any size without using the disk.
"""

import os
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG

from sesam.errors import SesamError

MAX_BYTES = {  # by suffix; an uncompressed image of the most pixels that are read has 0.7 GB
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".json", ".geojson", ".xml"), 1 << 30),
    **dict.fromkeys((".txt", ".csv", ".tsv", ".names"), 1 << 28),
    **dict.fromkeys((".yaml", ".yml", ".py"), 1 << 18),  # PyYAML takes a second for 10 kB of brackets
}
MAX_BYTES_OF_OTHERS = 1 << 32  # the weights of the largest SAM have 2.6 GB


def open_regular(path: Path) -> BufferedReader:
    """A file, opened to read; OSError, or SesamError if it is not a regular file, or implausibly large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)  # a pipe does not block
    status, limit = os.fstat(descriptor), MAX_BYTES.get(path.suffix.lower(), MAX_BYTES_OF_OTHERS)
    if S_ISREG(status.st_mode) and status.st_size <= limit:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if S_ISREG(status.st_mode):
        raise SesamError(f"{path} has {status.st_size} bytes; at most {limit} are read. Split it, or restore a copy.")
    raise SesamError(f"{path} is not a regular file. Replace it with one.")


def read_regular(path: Path) -> bytes:
    """The content of such a file."""
    with open_regular(path) as file:
        return file.read()
