"""A task with everything else that its stages need."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxlimit import pruning
from jaxlimit._core.weights import flatten_weights
from jaxlimit.studies.settings import StudySettings
from jaxlimit.studies.task import Task

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task with everything else that its stages need."""

    task: Task
    key: PRNGKeyArray
    settings: StudySettings
    on_progress: Progress

    @property
    def args(self) -> tuple:
        """Loss, parameters and training data, as every function takes them."""
        return self.task.loss, self.task.params, self.task.batches

    @property
    def weights(self) -> Any:
        """The weights under study, flat."""
        return flatten_weights(self.task.params, self.task.where)[0]

    def masked(self, keep: Any) -> Any:
        """Return the parameters with the weights outside a flat mask set to 0."""
        weights, unflatten = flatten_weights(self.task.params, self.task.where)
        return unflatten(jnp.where(jnp.asarray(keep), weights, 0))

    def mean(self, function: Callable, params: Any, batches: Any) -> float:
        """Return the mean of a loss or an accuracy over all examples."""
        everything = {"where": lambda *_: True, "mesh": self.task.mesh}
        sweep = pruning.magnitude_sweep(
            function, params, batches, [1.0], *self.task.operands, **everything
        )
        return float(sweep.losses[0])


def accuracy_of(problem: Problem, keep: Any) -> float:
    """Return the accuracy of a flat mask, on held-out data where there are any; NaN without."""
    task = problem.task
    if task.accuracy is None:
        return float("nan")
    data = task.batches if task.held_out is None else task.held_out
    return problem.mean(task.accuracy, problem.masked(keep), data)
