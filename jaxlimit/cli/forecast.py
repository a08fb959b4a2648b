"""The cost of a study: memory by the planner, time by one evaluation."""

import time
from typing import Any

import jax

from jaxlimit import planning
from jaxlimit._core.batches import first_batch
from jaxlimit._core.masks import layer_sizes
from jaxlimit._core.weights import flatten_weights
from jaxlimit.studies import StudySettings, Task, count_examples


def describe(task: Task, settings: StudySettings) -> str:
    """Say what memory the spectrum will take and how long a study will run.

    Runs the loss and one gradient on the first batch, nothing more.
    """
    dim = flatten_weights(task.params, task.where)[0].size
    examples = count_examples(task.batches)
    workload, ways = planning.prepare(
        task.loss, task.params, task.batches, *task.operands, where=task.where
    )
    counts = {"num_steps": settings.num_steps, "num_probes": settings.num_probes}
    plan = planning.plan(workload, **counts, **ways)
    evaluation, gradient = seconds(task)
    ratios = settings.num_ratios * 4 // 3
    steps = settings.num_probes * (settings.num_steps + settings.num_gap_steps)
    of_layers = len(layer_sizes(task.params, task.where)) * settings.num_layer_steps
    lines = [
        f"D = {dim:,} weights, {examples:,} training examples",
        planning.describe(plan),
        f"one evaluation of the data: {evaluation:.3g} s, one Hessian product: "
        f"about {2 * gradient:.3g} s",
        f"magnitude sweep: about {_time(ratios * evaluation)}",
        f"certificate: up to {_time(settings.certificate_products * 2 * gradient)}",
        f"spectrum: up to {_time(steps * 2 * gradient)}",
        f"limits by layer: up to {_time(of_layers * 2 * gradient)}",
        "compilation and the search for the mask come on top",
    ]
    return "\n".join(lines)


def seconds(task: Task) -> tuple[float, float]:
    """Measure an evaluation and a gradient over all data, from the first batch."""
    batch = first_batch(task.batches)
    share = count_examples(task.batches) / len(jax.tree.leaves(batch)[0])

    def timed(function: Any) -> float:
        function = jax.jit(function)
        call = lambda: jax.block_until_ready(function(task.params, batch, *task.operands))  # noqa: E731
        call()
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return share * min(taken)

    loss = lambda *args: task.loss(*args)  # noqa: E731
    return timed(loss), timed(jax.grad(loss))


def _time(taken: float) -> str:
    if taken < 120:
        return f"{taken:.3g} s"
    return f"{taken / 60:.3g} minutes" if taken < 7200 else f"{taken / 3600:.3g} hours"
