"""The start of a training run, and how the run is watched and saved."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import PyTree

from jaxlimit._core.checks import check_count
from jaxlimit.training.data import Normalization
from jaxlimit.training.history import Metrics


class Start(NamedTuple):
    """A network to start from.

    Attributes:
        params: its parameters; if None, a Linen module is initialised from the seed.
        state: its other variables, such as `{"batch_stats": ...}`; `{}` if None.
        normalization: the normalisation of its images; measured on them if None.
    """

    params: PyTree = None
    state: PyTree = None
    normalization: Normalization | None = None


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """How a run is watched, and what it leaves on disk.

    Attributes:
        on_epoch: called with the `Metrics` of each epoch when it is done.
        on_resume: called with the `Metrics` of the epochs found in a checkpoint, if there is one.
        metrics_path: a file for the metrics, one JSON object a line and epoch.
        checkpoint_dir: a folder for the newest checkpoint of this run alone. A function is
            identified by its name and its jaxpr in evaluation mode, not by arrays that it holds.
        checkpoint_every: epochs between checkpoints; the last epoch always makes one.

    Raises:
        TypeError: if `checkpoint_every` is no int.
        ValueError: if it is below 1.
    """

    on_epoch: Callable[[Metrics], None] | None = None
    on_resume: Callable[[Metrics], None] | None = None
    metrics_path: str | os.PathLike | None = None
    checkpoint_dir: str | os.PathLike | None = None
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        """Raise now what would raise after an epoch."""
        check_count("checkpoint_every", self.checkpoint_every)


def as_start(start: Any) -> Start:
    """Return a start that is given as a `Start`, as a `TrainingResult`, or as None.

    Raises:
        TypeError: if it is something else, such as bare parameters.
    """
    if start is None:
        return Start()
    try:
        return Start(start.params, start.state, start.normalization)
    except AttributeError:
        raise TypeError(
            "start must be a training.Start or a training.TrainingResult, got "
            f"{type(start).__name__}; from parameters, training.Start(params)"
        ) from None
