"""Results on disk: versioned npz, written whole or not at all, and refused by name if damaged."""

import os
import zipfile
import zlib
from typing import Any

import numpy as np

# What NumPy and its zip reader raise at a file that is cut short, damaged, or of another kind.
_UNREADABLE = (
    ValueError, TypeError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def save(path: Any, version: int, **fields: Any) -> None:
    """Write arrays as an npz, under a temporary name until it is whole.

    Raises:
        OSError: if the file cannot be written; one that was there before is kept whole.
    """
    temporary = f"{os.fspath(path)}.tmp"
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in fields.items()}
    with open(temporary, "wb") as file:
        np.savez(file, version=version, **arrays)
    os.replace(temporary, path)


def load(path: Any, what: str, version: int, *kinds: set[str]) -> dict[str, np.ndarray]:
    """Read the arrays of an npz that `save` wrote.

    Args:
        path: of the file.
        what: the file should be, with its article.
        version: that it should have.
        *kinds: sets of names, one of which it must hold whole.

    Raises:
        OSError: if there is no such file.
        ValueError: if it cannot be read, or is of another version or kind.
    """
    expected = f"{path} must be {what} of format {version}, got"
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise ValueError(f"{expected} a file that cannot be read as one: {error}") from error
    found = fields.get("version", np.asarray("none"))
    if str(found) != str(version):
        raise ValueError(f"{expected} {found}")
    if not any(names <= fields.keys() for names in kinds):
        missing = ", ".join(sorted(min((names - fields.keys() for names in kinds), key=len)))
        raise ValueError(f"{expected} a file without {missing}")
    return fields
