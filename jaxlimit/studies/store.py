"""The folder of a study: one file a stage, written whole, and read only by the same study."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlimit._core import files

_VERSION = 2


class Store:
    """The saved stages of one study in one folder; without a folder nothing is saved.

    Args:
        folder: where, or None.
        fingerprint: a digest that identifies the study.
    """

    def __init__(self, folder: Any, fingerprint: str) -> None:
        self.folder = None if folder is None else Path(folder)
        self.identity = {"study": fingerprint}

    def load(self, stage: str, kind: Any) -> tuple[Any, float] | None:
        """Return the result of a stage and its seconds; None if it has not run for this study.

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
        """Save the result of a stage."""
        path = self._path(stage)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.save(path, _VERSION, identity=self.identity, seconds=seconds, **result._asdict())

    def below(self, name: str) -> Path | None:
        """Return a folder for the checkpoints of a stage of this study."""
        return None if self.folder is None else self.folder / f"{name}-{self.identity['study'][:8]}"

    def _path(self, stage: str) -> Path | None:
        return None if self.folder is None else self.folder / "stages" / f"{stage}.npz"


def _value(array: np.ndarray) -> Any:
    return array.item() if array.ndim == 0 else array
