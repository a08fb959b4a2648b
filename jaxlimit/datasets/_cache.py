"""One decoded split on disk: an array with the checksum and the source it was made from."""

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from jaxlimit._core.files import replacing

_LENGTH = struct.Struct("<Q")
_LAYOUT = 1  # raise it whenever the same records would decode to another array


def cache_folder() -> Path:
    """Return `JAXLIMIT_CACHE_DIR`, or `jaxlimit` in the user's cache folder."""
    if folder := os.environ.get("JAXLIMIT_CACHE_DIR"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxlimit"


def cached_array(name: str, files: list[Path], build: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array kept under `name`, mapped into memory; build it where there is none.

    What is kept counts only while its SHA-256 holds and while every one of `files` has the path,
    size and modification time it was built from. A folder that cannot be written costs a warning
    and the time to build again, never the data.

    Args:
        name: file name without suffix, in `cache_folder()`.
        files: the files that `build` reads.
        build: makes the array.
    """
    path = cache_folder() / f"{name}.npy"
    source = [_LAYOUT, *(_identity(file) for file in files)]
    kept = _open(path, source)
    if kept is not None:
        return kept
    array = build()
    try:
        _store(path, source, array)
    except OSError as error:
        warnings.warn(f"decoded images could not be kept in {path}: {error}", stacklevel=2)
        return array
    return np.load(path, mmap_mode="r")


def _identity(file: Path) -> list:
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def _open(path: Path, source: list) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            size, entry = _read_note(file)
            if entry["source"] != source:
                return None
            if entry["sha256"] == _checksum(file, size):
                return np.load(path, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError):
        pass
    warnings.warn(f"{path} does not match its checksum and is built again", stacklevel=3)
    return None


def _store(path: Path, source: list, array: np.ndarray) -> None:
    """Write the array as `np.save` does, then a note as JSON, then the note's length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        hashed = _Hashed(file)
        np.save(hashed, array)
        note = json.dumps({"sha256": hashed.digest.hexdigest(), "source": source}).encode()
        file.write(note + _LENGTH.pack(len(note)))


class _Hashed:
    """A file to write to that digests what it is given."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _read_note(file: IO[bytes]) -> tuple[int, dict]:
    """Return the size of the array's own part of a file, and the note behind it."""
    end = file.seek(-_LENGTH.size, os.SEEK_END)
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > min(end, 1 << 24):
        raise ValueError(f"a note of {length} bytes")
    size = file.seek(end - length)
    return size, json.loads(file.read(length))


def _checksum(file: IO[bytes], size: int) -> str:
    """Return the SHA-256 of the first so many bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (piece := file.read(min(size, 1 << 22))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()
