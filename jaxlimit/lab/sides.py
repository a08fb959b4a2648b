"""Both sides of the limit of a trained network: the search of a run, and what many runs say."""

from typing import Any

import jax
import numpy as np

from jaxlimit import curvature, datasets, flatten_weights, pruning, studies, training
from jaxlimit.lab.console import Stages
from jaxlimit.lab.results import TwoSides
from jaxlimit.lab.settings import RunConfig


def find(net: Any, epsilon: Any, config: RunConfig, seed: int, stages: Stages) -> TwoSides:
    """Search for the smallest mask within ε, and certify how few no mask can go below.

    Args:
        net: the trained network, a `runs.Net`.
        epsilon: ε.
        config: settings of the run.
        seed: of the run.
        stages: to time and show the work.
    """
    problem = (*net.args, datasets.to_batches(net.train), net.trained.state)
    key = jax.random.fold_in(jax.random.key(seed), 2)
    with stages.time("smallest mask"):
        found = pruning.smallest_mask(
            *problem, epsilon=epsilon, key=key, on_progress=stages.show, mesh=net.mesh
        )
    with stages.time("layers"):
        layers = _by_layer(net, problem, found, config, key)
    pruned = pruning.apply_mask(net.trained.params, found.mask)
    told = training.evaluate(
        net.module,
        pruned,
        net.trained.state,
        net.test,
        normalization=net.trained.normalization,
        batch_size=config.images_at_once,
    )
    return TwoSides(
        found=float(found.ratio),
        method=found.method,
        certificate=None if found.certificate is None else float(found.certificate.ratio),
        candidates={candidate.method: float(candidate.ratio) for candidate in found.candidates},
        notes=found.notes,
        loss=float(found.loss),
        accuracy=float(told.accuracy),
        live=None if found.live is None else float(_flat(found.live).mean()),
        shares=None if found.shares is None else found.shares._asdict(),
        layers=layers,
        residual=_residual(net, problem, found, config),
    )


def _flat(mask: Any) -> np.ndarray:
    """Lay a mask out as the flat vector of the weights under study."""
    return np.asarray(flatten_weights(jax.tree.map(lambda m: m * 1.0, mask))[0]) > 0


def _by_layer(
    net: Any, problem: tuple, found: Any, config: RunConfig, key: Any
) -> dict[str, dict[str, int]]:
    """Count what the masks keep of each layer, and what its own limit asks for."""
    params = net.trained.params
    magnitude = next(c.ratio for c in found.candidates if c.method == "magnitude")
    kept = {"found": found.mask, "magnitude": pruning.magnitude_mask(params, magnitude)}
    masks = studies.layer_masks(params)
    counts = {"all": {name: int(mask.sum()) for name, mask in masks.items()}}
    for way, mask in kept.items():
        flat = _flat(mask)
        counts[way] = {name: int(flat[mask].sum()) for name, mask in masks.items()}
    if config.layer_steps:
        study = studies.layer_limits(
            *problem, epsilon=found.epsilon, key=key, num_steps=config.layer_steps
        )
        limits = study.limits.limits
        counts["by_layer"] = {name: int(limits[name].num_kept) for name in masks}
    return counts


def _residual(net: Any, problem: tuple, found: Any, config: RunConfig) -> dict[str, float] | None:
    """Measure how far the live weights are from a minimum under plain l1."""
    told = config.training
    if not told.l1 or told.l1_delta or found.live is None:
        return None
    gradient = curvature.mean_gradient(*problem, mesh=net.mesh)
    weights, _ = flatten_weights(net.trained.params)
    residual = pruning.l1_residual(gradient, weights, told.l1, support=_flat(found.live))
    return {name: float(value) for name, value in residual._asdict().items()}
