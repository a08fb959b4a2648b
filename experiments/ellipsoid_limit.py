"""Prune quadratic losses, whose sublevel set is exactly the ellipsoid, and compare the theory.

python experiments/ellipsoid_limit.py                     # a few minutes
python experiments/ellipsoid_limit.py --dims 32 128 --num-bases 50

The loss is ½(w - w*)ᵀH(w - w*) with a given spectrum in a random basis. So the plane of the kept
weights is a random subspace at distance R, the norm of what is removed, with the offset
perpendicular to it. Linear algebra finds the fewest weights that may be kept within ε when they are
refitted; the published fixed point of ρ_L and the corrected threshold are compared with this. A
pruning sweep measures a third number, with the kept weights as they are: in a random basis it
depends on the trace of H alone.
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxlimit import limits
from jaxlimit.lab import figures
from jaxlimit.lab.console import Stages
from jaxlimit.lab.figures import QuadraticComparison
from jaxlimit.lab.outcome import finish
from jaxlimit.spectrum import exact_measure

# Quantile functions, from u = 0 to u = 1, of eigenvalues.
SPECTRA = {
    "all equal": lambda u: jnp.ones_like(u),
    "2 decades, even in log λ": lambda u: 10.0 ** (2 * u),
    "6 decades, even in log λ": lambda u: 10.0 ** (6 * u),
    "90 % flat, 10 % over\n4 decades, as in networks": lambda u: jnp.where(
        u < 0.9, 1e-4, 10.0 ** (4 * (u - 0.9) / 0.1)
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the theory with exact feasibility, from a flat spectrum to a network's."""

    dims: tuple[int, ...] = (64, 256, 1024)
    """Numbers of weights D, growing."""
    num_bases: int = 100
    """Random bases of the Hessian a spectrum and D."""
    weight_power: float = 3.0
    """Weights are normal deviates to this power: many small ones, as l1 training leaves them."""
    tolerances: tuple[float, ...] = tuple(np.geomspace(1e-4, 0.5, 10).round(6).tolist())
    """ε, as shares of ½‖w*‖² tr H/D, the loss without any weight in a random basis."""
    seed: int = 0
    output: Path = Path("runs/ellipsoid_limit")


@jax.jit
def exact_limits(keys, eigenvalues, weights, epsilons) -> limits.QuadraticLimit:
    """Find the limits in a random basis a key."""

    def in_basis(key):
        basis = jax.random.orthogonal(key, weights.size)
        return limits.quadratic_limit(basis.T * eigenvalues @ basis, weights, epsilons)

    return jax.lax.map(in_basis, keys)


def compare(name: str, dim: int, config: Config) -> QuadraticComparison:
    """Find the exact limits in random bases, and predict them."""
    quantiles = (jnp.arange(dim) + 0.5) / dim
    eigenvalues = SPECTRA[name](quantiles)
    weights = jax.scipy.special.ndtri((1 + quantiles) / 2) ** config.weight_power
    epsilons = jnp.asarray(config.tolerances) * (weights @ weights * eigenvalues.mean() / 2)
    keys = jax.random.split(jax.random.key(config.seed), config.num_bases)
    exact = exact_limits(keys, eigenvalues, weights, epsilons)
    measure = exact_measure(eigenvalues)
    predict = lambda rule: [float(rule(measure, weights, e).ratio) for e in epsilons]  # noqa: E731
    return QuadraticComparison(
        dim=dim,
        tolerances=np.array(config.tolerances),
        refitted=np.asarray(exact.refitted) / dim,
        one_shot=np.asarray(exact.one_shot) / dim,
        published=np.array(predict(limits.pruning_limit)),
        corrected=np.array(predict(limits.random_subspace_threshold)),
    )


def summarize(at: QuadraticComparison) -> dict:
    """Return what the result file holds of one comparison."""
    spread = partial(np.quantile, q=(0.1, 0.5, 0.9), axis=0)
    return at._asdict() | {
        "refitted": {"mean": at.refitted.mean(0), "quantiles": spread(at.refitted)},
        "one_shot": {"mean": at.one_shot.mean(0), "quantiles": spread(at.one_shot)},
        "published_over_truth": at.published / at.refitted.mean(0),
        "corrected_over_truth": at.corrected / at.refitted.mean(0),
    }


def conclude(comparisons: dict[str, list[QuadraticComparison]]) -> str:
    """Say in one sentence what the figure shows."""
    last = [series[-1] for series in comparisons.values()]
    published = np.array([at.error("published") for at in last])
    corrected = np.abs([at.error("corrected") for at in last])
    factor = max((at.published / at.refitted.mean(0)).max() for at in last)
    spread = max(at.width().max() for at in last)
    as_they_are = max((at.one_shot.mean(0) / at.refitted.mean(0)).max() for at in last)
    return (
        f"At D = {last[0].dim} the corrected threshold is within {corrected.max():.4f} of the "
        f"exact ratio on every spectrum, inside the spread over bases of up to {spread:.3f}; the "
        f"published fixed point is off by {published.min():+.3f} to {published.max():+.3f}, up to "
        f"{factor:.1f} times too much; and pruning that leaves the kept weights as they are needs "
        f"up to {as_they_are:.1f} times what refitting them needs."
    )


def main(config: Config) -> None:
    """Compare, draw, and say what it shows."""
    comparisons = {name: [] for name in SPECTRA}
    with Stages() as stages, jax.enable_x64(True):
        for dim in config.dims:
            with stages.time(f"D = {dim}"):
                for name, series in comparisons.items():
                    series.append(compare(name, dim, config))
    sentence = conclude(comparisons)
    spectra = {
        name.replace("\n", " "): [summarize(at) for at in series]
        for name, series in comparisons.items()
    }
    drawn = {"ellipsoid_limit.png": figures.plot_quadratic_limits(comparisons)}
    path = config.output / "result.json"
    finish(path, config, sentence, figures=drawn, spectra=spectra, seconds=stages.seconds)


if __name__ == "__main__":
    main(tyro.cli(Config))
