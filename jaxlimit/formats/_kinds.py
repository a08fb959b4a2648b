"""The forms of a checkpoint on disk: recognised, read and written."""

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlimit._core.extras import require
from jaxlimit._core.files import check_array_size, check_sizes, replacing

KINDS = ("orbax", "safetensors", "msgpack", "npz", "eqx")
_SUFFIXES = {".safetensors": "safetensors", ".msgpack": "msgpack", ".npz": "npz", ".eqx": "eqx"}
_PICKLED = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"}


class CheckpointError(ValueError):
    """A checkpoint that is damaged, of another kind, or does not fit what it is read for."""


class Content(NamedTuple):
    """The whole content of a checkpoint.

    Attributes:
        kind: one of `KINDS`.
        tree: nested dicts and lists of NumPy arrays and other values.
        metadata: text beside it (safetensors).
        place: step and item of the tree in an Orbax folder, if it has them.
    """

    kind: str
    tree: Any
    metadata: dict[str, str]
    place: tuple[str, ...] = ()


def kind_of(path: Path) -> str:
    """Recognise the form of the checkpoint at `path` by its name or its first bytes.

    Raises:
        FileNotFoundError: if there is nothing.
        CheckpointError: if it is none of `KINDS`.
    """
    if path.is_dir():
        return "orbax"
    if not path.exists():
        raise FileNotFoundError(f"path must be a checkpoint, there is nothing at {path}")
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"path must be a folder or a regular file, {path} is neither")
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK") and path.suffix not in _PICKLED:
        return "npz"
    if head.startswith(b"\x93NUMPY"):
        return "eqx"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    hint = ": pickles run code, so they are not read; save it as safetensors first"
    raise CheckpointError(
        f"{path} must be an orbax folder or a safetensors, msgpack, npz or eqx file, told by its "
        f"name or its first bytes, got neither{hint if path.suffix in _PICKLED else ''}"
    )


def read(path: Path, step: int | None = None) -> Content:
    """Read all of a checkpoint.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        CheckpointError: if it is damaged or of none of `KINDS`.
    """
    kind = kind_of(path)
    if step is not None and kind != "orbax":
        raise CheckpointError(f"step must be None: {path} is one {kind} file, without steps")
    if kind == "orbax":
        require("orbax.checkpoint", "train", "an Orbax checkpoint")
        from jaxlimit.formats import _orbax

        return _orbax.read(path, step)
    try:
        return _READERS[kind](path)
    except (CheckpointError, ModuleNotFoundError):
        raise
    except (OSError, MemoryError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | MemoryError):
            raise
        raise _damaged(path, kind, error) from error
    except Exception as error:
        # What the readers raise at foreign bytes is of any type.
        raise _damaged(path, kind, error) from error


def write(path: Path, content: Content) -> None:
    """Write a checkpoint whole or not at all; an older one at `path` stays until then.

    Raises:
        OSError: if it cannot be written.
    """
    if content.kind == "orbax":
        require("orbax.checkpoint", "train", "an Orbax checkpoint")
        from jaxlimit.formats import _orbax

        with whole_folder(path) as temporary:
            _orbax.write(temporary, content)
        return
    data = _WRITERS[content.kind](content)
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the body ends well."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield own / path.name
        old = own / "replaced"
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(own / path.name, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _damaged(path: Path, kind: str, error: Exception) -> CheckpointError:
    said = " ".join(str(error).split())[:200]
    return CheckpointError(
        f"{path} cannot be read as {kind}; it is damaged or of another kind: "
        f"{type(error).__name__}: {said}"
    )


def _read_safetensors(path: Path) -> Content:
    import ml_dtypes

    require("safetensors", "study", "a safetensors checkpoint")
    from safetensors import deserialize, safe_open

    narrow = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
              "F8_E5M2": ml_dtypes.float8_e5m2, "F64": "f8", "F32": "f4", "F16": "f2",
              "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4",
              "U16": "u2", "U8": "u1", "BOOL": "?", "C64": "c8"}  # fmt: skip
    tree = {}
    for name, entry in deserialize(path.read_bytes()):
        if entry["dtype"] not in narrow:
            raise CheckpointError(f"{path}: {name} has the type {entry['dtype']}, which is unknown")
        array = np.frombuffer(entry["data"], narrow[entry["dtype"]])
        tree[name] = array.reshape(entry["shape"])
    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata() or {})
    return Content("safetensors", tree, metadata)


def _write_safetensors(content: Content) -> bytes:
    require("safetensors", "study", "a safetensors checkpoint")
    from safetensors.numpy import save

    # Not `ascontiguousarray`, which makes a number of no axes one of one.
    tree = {name: np.array(leaf, order="C") for name, leaf in content.tree.items()}
    return save(tree, metadata=content.metadata or None)


def _read_npz(path: Path) -> Content:
    with zipfile.ZipFile(path) as archive:
        foreign = [name for name in archive.namelist() if not name.endswith(".npy")]
    if foreign:
        raise CheckpointError(f"{path} must hold npy arrays alone, got {foreign[0]!r}")
    check_sizes(path, compressed=True)
    with np.load(path, allow_pickle=False) as file:
        return Content("npz", {name: file[name] for name in file.files}, {})


def _write_npz(content: Content) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **content.tree)
    return buffer.getvalue()


def _read_msgpack(path: Path) -> Content:
    require("flax", "train", "a msgpack checkpoint")
    from flax import serialization

    tree = serialization.msgpack_restore(path.read_bytes())
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"{path} must hold a nested dictionary, as flax.serialization writes it, "
            f"got {type(tree).__name__}"
        )
    return Content("msgpack", tree, {})


def _write_msgpack(content: Content) -> bytes:
    require("flax", "train", "a msgpack checkpoint")
    from flax import serialization

    return serialization.msgpack_serialize(content.tree)


def _read_eqx(path: Path) -> Content:
    arrays = []
    with path.open("rb") as file:
        size = path.stat().st_size
        while (start := file.tell()) < size:
            check_array_size(f"array {len(arrays)}", file, size)
            file.seek(start)
            arrays.append(np.load(file, allow_pickle=False))
    if not arrays:
        raise CheckpointError(f"{path} must hold at least one array, it is empty")
    return Content("eqx", arrays, {})


def _write_eqx(content: Content) -> bytes:
    buffer = io.BytesIO()
    for array in content.tree:
        np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


_READERS: dict[str, Callable[[Path], Content]] = {
    "safetensors": _read_safetensors,
    "msgpack": _read_msgpack,
    "npz": _read_npz,
    "eqx": _read_eqx,
}
_WRITERS: dict[str, Callable[[Content], bytes]] = {
    "safetensors": _write_safetensors,
    "msgpack": _write_msgpack,
    "npz": _write_npz,
    "eqx": _write_eqx,
}
