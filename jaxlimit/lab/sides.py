"""Both sides of the limit of a trained network: the search of a run."""

from typing import Any

import jax

from jaxlimit import curvature, datasets, flatten_weights, pruning, studies, training
from jaxlimit.lab.console import Stages
from jaxlimit.lab.results import TwoSides
from jaxlimit.lab.settings import RunConfig


def find(net: Any, epsilon: Any, config: RunConfig, seed: int, stages: Stages) -> TwoSides:
    """Search for the smallest mask within ε, and certify how few weights any mask keeps.

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
    proof = found.certificate
    return TwoSides(
        found=float(found.ratio),
        method=found.method,
        certificate=None if proof is None else float(proof.ratio),
        open=None if proof is None else proof.open / proof.relaxed.size,
        candidates={candidate.method: float(candidate.ratio) for candidate in found.candidates},
        notes=found.notes,
        loss=float(found.loss),
        accuracy=float(told.accuracy),
        live=None if found.live is None else float(pruning.flat_mask(found.live, pruned).mean()),
        shares=None if found.shares is None else found.shares._asdict(),
        layers=layers,
        residual=_residual(net, problem, found, config),
    )


def _by_layer(
    net: Any, problem: tuple, found: Any, config: RunConfig, key: Any
) -> dict[str, dict[str, int]]:
    """Count what the masks keep of each layer, and what its own limit asks for."""
    params = net.trained.params
    magnitude = next(c.ratio for c in found.candidates if c.method == "magnitude")
    masks = {"found": found.mask, "magnitude": pruning.magnitude_mask(params, magnitude)}
    kept = {way: pruning.kept_by_layer(mask, params) for way, mask in masks.items()}
    counts = {"all": {name: size for name, (_, size) in kept["found"].items()}}
    for way, layers in kept.items():
        counts[way] = {name: count for name, (count, _) in layers.items()}
    if config.layer_steps:
        study = studies.layer_limits(
            *problem, epsilon=found.epsilon, key=key, num_steps=config.layer_steps
        )
        limits = study.limits.limits
        counts["by_layer"] = {name: int(limits[name].num_kept) for name in counts["all"]}
    return counts


def _residual(net: Any, problem: tuple, found: Any, config: RunConfig) -> dict[str, float] | None:
    """Measure how far the live weights are from a minimum under plain l1."""
    told = config.training
    if not told.l1 or told.l1_delta or found.live is None:
        return None
    gradient = curvature.mean_gradient(*problem, mesh=net.mesh)
    weights, _ = flatten_weights(net.trained.params)
    support = pruning.flat_mask(found.live, net.trained.params)
    residual = pruning.l1_residual(gradient, weights, told.l1, support=support)
    return {name: float(value) for name, value in residual._asdict().items()}
