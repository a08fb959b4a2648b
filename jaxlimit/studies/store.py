"""The folder of a study: one file a stage, written whole and read by the same study alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlimit._core import files, locks

_VERSION = 2


class Store:
    """The stages of one study in one folder; without a folder it keeps nothing.

    Args:
        folder: where, or None.
        fingerprint: what tells this study from another, as text.
    """

    def __init__(self, folder: Any, fingerprint: str) -> None:
        self.folder = None if folder is None else Path(folder)
        self.identity = {"study": fingerprint}

    def load(self, stage: str, kind: Any) -> tuple[Any, float] | None:
        """Return what a stage gave and the seconds it took; None if it has not run for this study.

        Raises:
            ValueError: if the file is damaged; says which.
        """
        path = self._path(stage)
        if path is None or not path.exists():
            return None
        what, names = f"a study's stage {stage!r}", {*kind._fields, "seconds"}
        try:
            fields = files.load(path, what, _VERSION, names, identity=self.identity)
        except files.OtherRunError:
            return None
        result = kind(**{name: _value(fields[name]) for name in kind._fields})
        return result, float(fields["seconds"])

    def save(self, stage: str, result: NamedTuple, seconds: float) -> None:
        """Keep what a stage gave."""
        path = self._path(stage)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.save(path, _VERSION, identity=self.identity, seconds=seconds, **result._asdict())

    def below(self, name: str) -> Path | None:
        """Return a folder for a stage's own checkpoints, of this study alone."""
        return None if self.folder is None else self.folder / f"{name}-{self.identity['study'][:8]}"

    def _path(self, stage: str) -> Path | None:
        return None if self.folder is None else self.folder / "stages" / f"{stage}.npz"


@contextmanager
def held(folder: Any) -> Iterator[None]:
    """Be the only writer to a folder, which is made if it is not there, and gone if left empty.

    Raises:
        InUseError: if another process holds it.
    """
    if folder is None:
        yield
        return
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locks.hold(folder):
            yield
    finally:
        for path in made:
            _remove_empty(path)


def _remove_empty(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"gone"}
    if names <= {locks.LOCK, locks.HOLDER}:
        for name in names:
            (folder / name).unlink()
        folder.rmdir()


def _value(array: np.ndarray) -> Any:
    return array.item() if array.ndim == 0 else array
