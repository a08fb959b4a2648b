"""The result of a study, and how it is shown."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxlimit import pruning
from jaxlimit._core.weights import flatten_weights
from jaxlimit.studies import masks, summary
from jaxlimit.studies.estimation import LimitEstimate
from jaxlimit.studies.findings import (
    AtPrediction,
    Certified,
    Found,
    Guaranteed,
    LayerLimits,
    Layers,
    Measured,
)
from jaxlimit.studies.settings import StudySettings
from jaxlimit.studies.task import Task


@dataclasses.dataclass(frozen=True, repr=False)
class Study:
    """How far one trained network can be pruned, from both sides.

    Stages that did not fit the budget are None and named in `missing`. `print` shows at most 25
    lines, a notebook shows a table and a figure, and `save` writes the report.

    Attributes:
        task: the network, its loss and its data.
        settings: the settings of the study.
        measured: ε, the dense network, and the effect of magnitude pruning.
        found: the sparsest mask within ε that was found.
        certified: how few weights any mask within ε of the quadratic keeps.
        estimate: the published prediction ρ* and the numbers that go with it.
        at_prediction: the effect of magnitude pruning at ρ*.
        layers: weights of each layer kept by magnitude and by the mask.
        layer_limits: weights of each layer that the theory asks for.
        guaranteed: the ratio that is safe on unseen data.
        missing: stages that did not run, each with the reason.
        seconds: time of each stage; for one read from the folder, the time when it ran.
        about: version, commit, date, command and devices.
    """

    task: Task
    settings: StudySettings
    measured: Measured
    found: Found | None = None
    certified: Certified | None = None
    estimate: LimitEstimate | None = None
    at_prediction: AtPrediction | None = None
    layers: Layers | None = None
    layer_limits: LayerLimits | None = None
    guaranteed: Guaranteed | None = None
    missing: tuple[str, ...] = ()
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def mask(self) -> Any:
        """The mask found, a pytree of Booleans; magnitude's if none was found."""
        return self.mask_at(None)

    @property
    def ratio(self) -> float:
        """The fraction of weights that `mask` keeps."""
        found = self.found
        return self.measured.by_loss if found is None else found.num_kept / self.measured.dim

    @property
    def safe_ratio(self) -> float:
        """The ratio that is safe on unseen data; `ratio` if that was not tested."""
        return self.ratio if self.guaranteed is None else self.guaranteed.ratio

    def mask_at(self, ratio: float | None) -> Any:
        """Return the mask found, extended by the largest other weights up to a ratio.

        Args:
            ratio: fraction kept; None for that of the mask found. A smaller one keeps only the
                largest weights of the mask.

        Raises:
            ValueError: if `ratio` lies outside [0, 1].
        """
        weights = flatten_weights(self.task.params, self.task.where)[0]
        if self.found is None:
            kept = pruning.num_kept(weights.size, self.measured.by_loss)
            first = np.asarray(pruning.flat_magnitude_mask(weights, kept))
        else:
            first = np.asarray(self.found.mask, bool)
        if ratio is None:
            return pruning.mask_tree(first, self.task.params, self.task.where)
        joined = masks.joined_mask(self.task, first, ratio)
        return pruning.mask_tree(joined, self.task.params, self.task.where)

    def __str__(self) -> str:
        """Show the two sides, the safe ratio, and the verdict."""
        return summary.text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from jaxlimit import reports

        return reports.fragment(self)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write report.html, report.md, result.json, the masks, the spectrum and the figures.

        Each file is written whole or not at all.

        Returns:
            The path of report.html.

        Raises:
            OSError: if a file cannot be written; an earlier file stays whole.
        """
        from jaxlimit import reports

        return reports.write(self, folder)
