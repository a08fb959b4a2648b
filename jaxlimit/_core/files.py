"""Files that are written whole or not at all, and refused if damaged or of another run."""

import json
import math
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxlimit._core import digests

# What NumPy and its zip reader raise at a file that is cut short, damaged, or of another kind;
# RuntimeError at an entry marked as encrypted, MemoryError at a size in a header that is not true.
_UNREADABLE = (
    ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class OtherRunError(ValueError):
    """A file is whole, but another run made it."""


@contextmanager
def replacing(path: Any) -> Iterator[IO[bytes]]:
    """Open a new binary file that replaces `path` when the body ends without an error.

    It is written in the folder of `path` under a new name, so two writers never share a file and no
    link is followed. It is flushed to disk before it is renamed.

    Raises:
        OSError: if it cannot be written; an earlier file at `path` is still whole.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "greeting.txt")
    ...     with replacing(path) as file:
    ...         _ = file.write(b"hello")
    ...     path.read_text(), len(list(path.parent.iterdir()))
    ('hello', 1)
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    try:
        # As `open` does, but for O_EXCL; a link at this name is refused too.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        there = "what was there before is still whole" if path.exists() else "nothing was left"
        said = error.strerror or error
        raise OSError(error.errno, f"could not write {path}, {there}: {said}") from error


def _sync_folder(folder: Path) -> None:
    """Flush the folder to disk too, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Any, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Any, content: dict[str, Any]) -> None:
    """Write an object as JSON with a digest of what it holds, whole or not at all.

    Raises:
        OSError: if the file cannot be written; one that was there before is kept whole.
        ValueError: if it holds a number that JSON lacks, such as NaN, or an entry `digest`.
    """
    if "digest" in content:
        raise ValueError("content must not have an entry of its own called digest")
    content = content | {"digest": digests.of_json(content)}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Any) -> dict[str, Any]:
    """Read what `write_json` wrote, without the digest.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is cut short, was changed since, or `write_json` did not write it.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "result.json")
    ...     write_json(path, {"ratio": 0.25})
    ...     print(read_json(path))
    ...     write_text(path, path.read_text().replace("25", "35"))
    ...     read_json(path)
    Traceback (most recent call last):
    ValueError: ...result.json was changed since it was written: its digest is of other contents
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or "digest" not in content:
        raise ValueError(f"{path} has no digest: it was not written by this version of jaxlimit")
    if content.pop("digest") != digests.of_json(content):
        raise ValueError(
            f"{path} was changed since it was written: its digest is of other contents"
        )
    return content


def save(path: Any, version: int, *, identity: dict | None = None, **fields: Any) -> None:
    """Write arrays as an npz, whole or not at all.

    Args:
        path: of the file.
        version: of its format.
        identity: what it was made from, as JSON; `load` compares it.
        **fields: the arrays by name.

    Raises:
        OSError: if the file cannot be written; one that was there before is kept whole.
    """
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in fields.items()}
    if identity is not None:
        arrays["identity"] = np.asarray(json.dumps(identity, sort_keys=True))
    with replacing(path) as file:
        np.savez(file, version=version, **arrays)


def load(
    path: Any, what: str, version: int, *kinds: set[str], identity: dict | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of an npz that `save` wrote.

    Args:
        path: of the file.
        what: the expected kind of file, with its article.
        version: the expected version.
        *kinds: sets of names; it must hold all of one of them.
        identity: the expected identity; None accepts any.

    Raises:
        OSError: if there is no such file.
        OtherRunError: if it has another identity, or none where one is asked for.
        ValueError: if it cannot be read, or is of another version or kind.
    """
    expected = f"{path} must be {what} of format {version}, got"
    try:
        check_sizes(path)
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
    made_by = fields.pop("identity", None)
    if identity is not None:
        _check_identity(path, identity, made_by)
    return fields


def check_sizes(path: Any, *, compressed: bool = False) -> None:
    """Raise unless the arrays of an npz are as large as their entries, and these as the file.

    Args:
        path: of the file, of which only headers are read.
        compressed: whether entries may be larger than the file.

    Raises:
        ValueError: if they are not, or the file is none; or what else zipfile raises.
    """
    on_disk = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size > on_disk and not compressed:
                raise ValueError(f"{entry.filename} of {entry.file_size} bytes in {on_disk}")
            with archive.open(entry) as file:
                check_array_size(entry.filename, file, entry.file_size)


def check_array_size(name: str, file: Any, end: int) -> None:
    """Raise `ValueError` if an array that begins here in a file cannot end by `end`."""
    read_header = _HEADERS[np.lib.format.read_magic(file)]
    shape, _, dtype = read_header(file)
    left = end - file.tell()
    if math.prod(shape) * dtype.itemsize > left:
        raise ValueError(f"{name} of shape {shape} in {left} bytes")


_HEADERS: dict[tuple, Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _check_identity(path: Any, identity: dict, made_by: np.ndarray | None) -> None:
    try:
        found = {} if made_by is None else json.loads(str(made_by))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: its identity is no JSON: {error}") from error
    wanted = json.loads(json.dumps(identity))
    if made_by is None or found != wanted:
        names = sorted(wanted.keys() | found.keys())
        different = [
            f"{name}: it has {found.get(name)!r}, asked for was {wanted.get(name)!r}"
            for name in names
            if found.get(name) != wanted.get(name)
        ]
        raise OtherRunError(f"{path} was made by another run: {'; '.join(different[:8])}")
