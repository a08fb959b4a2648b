"""The metrics of each epoch: kept, passed to a callback, and written to a file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Metrics(NamedTuple):
    """The metrics of an epoch; in a result, arrays over the epochs.

    With several seeds, `loss`, `data_loss` and `accuracy` have the seeds as their first axis.

    Attributes:
        epoch: epochs done, from 1.
        loss: `data_loss` plus both penalties of the weights at the epoch's end.
        data_loss: mean cross-entropy of the images as trained on, augmented, in training mode.
        accuracy: share of those images whose label had the largest logit.
        learning_rate: the rate of the last step.
    """

    epoch: Any
    loss: Any
    data_loss: Any
    accuracy: Any
    learning_rate: Any


def empty_metrics(batch: tuple[int, ...], num_epochs: int) -> Metrics:
    """Make room for the stacked metrics of `num_epochs` epochs, `batch` the shape of the seeds."""
    one, many = np.zeros(num_epochs, np.float32), np.zeros((*batch, num_epochs), np.float32)
    return Metrics(one.astype(np.int32), many, many, many, one)


class History:
    """Keep the metrics of all epochs, and pass each one on as it comes.

    Args:
        past: the epochs already done, as `stacked` returns them.
        on_epoch: called with the metrics of every epoch that is added.
        path: a file for one JSON object a line and epoch, past ones included.
        describe: says where the run can continue, if the file cannot be written.
    """

    def __init__(
        self,
        past: Metrics,
        on_epoch: Callable[[Metrics], None] | None,
        path: str | os.PathLike | None,
        describe: Callable[[], str],
    ):
        self._past = past
        self._epochs = [
            Metrics(*(values[..., epoch] for values in past)) for epoch in range(len(past.epoch))
        ]
        self._on_epoch = on_epoch
        self._path = None if path is None else Path(path)
        self._describe = describe
        self._write(self._epochs, "w")

    def append(self, metrics: Metrics) -> None:
        """Add an epoch and report it.

        Raises:
            OSError: if the file could not be written; says where the run can continue.
        """
        metrics = Metrics(np.int32(metrics.epoch), *map(np.float32, metrics[1:]))
        self._epochs.append(metrics)
        self._write([metrics], "a")
        if self._on_epoch is not None:
            self._on_epoch(metrics)

    def _write(self, epochs: list[Metrics], mode: str) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode) as file:
                file.writelines(map(_json_line, epochs))
        except OSError as error:
            raise OSError(
                f"could not write the metrics to {self._path}; {self._describe()}: {error}"
            ) from error

    def stacked(self) -> Metrics:
        """Return all epochs as arrays, the epochs along their last axis."""
        if not self._epochs:
            return self._past
        stacked = (np.stack(values, axis=-1) for values in zip(*self._epochs, strict=True))
        return Metrics(*stacked)


def _json_line(metrics: Metrics) -> str:
    return json.dumps({name: value.tolist() for name, value in metrics._asdict().items()}) + "\n"
