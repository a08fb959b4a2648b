"""One decoded split on disk: an array file beside the checksum and the source it was made from."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

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
    note = path.with_suffix(".json")
    if not (path.exists() and note.exists()):
        return None
    try:
        entry = json.loads(note.read_bytes())
        if entry["source"] != source:
            return None
        if entry["sha256"] == _checksum(path):
            return np.load(path, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    warnings.warn(f"{path} does not match its checksum and is built again", stacklevel=3)
    return None


def _store(path: Path, source: list, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        data, note = Path(folder, "array.npy"), Path(folder, "note.json")
        np.save(data, array)
        note.write_text(json.dumps({"sha256": _checksum(data), "source": source}))
        # A crash between the two leaves a checksum that does not match, which is seen and mended.
        data.replace(path)
        note.replace(path.with_suffix(".json"))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
