"""A made-up result of a run, whole, with the numbers that a test cares for."""

import dataclasses
from typing import Any

from jaxlimit.lab import results
from jaxlimit.lab.settings import RunConfig


def made_up(config: RunConfig | None = None, seed: int = 0, **changes: Any) -> results.RunResult:
    """Make a result; `changes` are fields of `RunResult`."""
    limit = results.Limit(0.02, 0.01, 0.03, 0.001, 20, 0.5, 0.1)
    curve = results.Curve([0.01 * i for i in range(1, 201)], [0.1] * 200)
    result = results.RunResult(
        seed=seed,
        config=config or RunConfig(),
        dim=1000,
        epsilon=0.1,
        epsilon_error=0.0,
        eigenvalues=results.Eigenvalues(2.0, -0.1, 0.9),
        prediction=limit,
        clipped=limit,
        corrected=limit,
        upper_bound=results.Interval(0.021, 0.0, 0.02, 0.03),
        gap=0.001,
        gap_interval=(0.0, 0.01),
        sensitivity=results.Sensitivity(-0.5, 0.0, 0.0),
        factors=results.Factors(0.5, 10.0, 0.0, 120.0, 0.0, 0.1, 0.2),
        trace_bound=0.1,
        depth=128,
        hessian_images=10_000,
        measured=results.Measured(0.01, 0.01, 0.01),
        baseline=results.Baseline(0.1, 0.01),
        distance_from_minimum=results.Distance(0.01, 0.003, 0.01, 0.0),
        dense=results.Dense(0.1, 0.5),
        pruned_accuracy=0.49,
        reasons=("the moon was full",),
        sweep=results.Sweep(curve, curve, curve),
        training=results.Epochs(list(range(1, 100)), [2.0] * 99, [1.0] * 99, [0.5] * 99),
        environment={"jax": "0"},
        seconds={"total": 1.0},
    )
    return dataclasses.replace(result, **changes)
