"""One writer to a folder: a second one gets an error that names the first."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxlimit._core import files
from jaxlimit._core.extras import require

LOCK, HOLDER = ".jaxlimit.lock", ".jaxlimit.holder"


class InUseError(OSError):
    """A folder is being written by another process, or by another call in this one."""


@contextmanager
def hold(folder: Any) -> Iterator[None]:
    """Be the only writer to a folder while the body runs.

    The lock is that of the operating system (`flock`): it ends with the process in any case, and
    holds across machines if the shared disk supports it, as NFS does. On a disk without such locks
    the existence of a file replaces them. In a folder that cannot be written nothing is locked.

    Raises:
        InUseError: if another holds it; says which process, where, and since when.
        OSError: if the folder cannot hold a lock.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, hold(folder):
    ...     try:
    ...         hold(folder).__enter__()
    ...     except InUseError as error:
    ...         print(error.strerror)
    /... is in use by another call in this process, since ...; wait for its end or give another ...
    """
    folder = Path(folder)
    if not os.access(folder, os.W_OK):
        yield
        return
    filelock = require("filelock", "train", "a lock on a folder")
    lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InUseError(
            errno.EAGAIN,
            f"{folder} is in use by {_holder(folder)}; wait for its end or give another folder",
        ) from None
    except OSError as error:
        raise OSError(error.errno, f"{folder} could not be locked: {error.strerror}") from error
    try:
        with suppress(OSError):  # the note is for people: the lock holds without it
            files.write_text(folder / HOLDER, json.dumps(_self()))
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


@contextmanager
def made_and_held(folder: Any) -> Iterator[None]:
    """Make a folder if necessary, be its only writer, and remove it again if it stays empty.

    Raises:
        InUseError: if another holds it.
        NotADirectoryError: if there is a file in its place or above it.
        OSError: if it cannot be made.
    """
    folder = Path(folder)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"folder must be a folder, {path} is a file")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"folder {folder} could not be made: {error.strerror}"
        raise OSError(error.errno, said) from error
    try:
        with hold(folder):
            yield
    finally:
        for path in made:
            _remove_empty(path)


def _remove_empty(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"gone"}
    if names <= {LOCK, HOLDER}:
        for name in names:
            (folder / name).unlink()
        folder.rmdir()


def _self() -> dict[str, Any]:
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _holder(folder: Path) -> str:
    try:
        note = json.loads((folder / HOLDER).read_bytes())
        process, host, since = (note[name] for name in ("process", "host", "since"))
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    if process == os.getpid() and host == socket.gethostname():
        return f"another call in this process, since {since}"
    return f"process {process} on {host}, since {since}"
