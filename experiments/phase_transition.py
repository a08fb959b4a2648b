"""Rotate subspaces at random and see the dimension at which they start to hit a convex set.

python experiments/phase_transition.py                    # two to three minutes
python experiments/phase_transition.py --dims 32 128 512 --num-rotations 50
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.optimize import linprog

from jaxlimit import geometry
from jaxlimit.lab.console import Stages
from jaxlimit.lab.figures import Transition, plot_phase_transitions
from jaxlimit.lab.outcome import finish


@dataclasses.dataclass(frozen=True)
class Config:
    """Hit a circular cone, an orthant, an l1 descent cone and an ellipsoid."""

    dims: tuple[int, ...] = (16, 64, 256)
    """Ambient dimensions D, growing."""
    num_rotations: int = 200
    """Random rotations a dimension; each carries a nested chain of subspaces, k = 1 ... D."""
    half_angle: float = np.pi / 6
    """Of the circular cone, in radians."""
    nonzero_share: float = 0.125
    """Share of nonzeros of the vector at which ‖·‖₁ descends."""
    semi_axes: tuple[float, float] = (0.1, 5.0)
    """Smallest and largest semi-axis of the ellipsoid, evenly spaced in the logarithm between."""
    distance: float = 1.0
    """Of the affine subspaces from the ellipsoid's center."""
    confidence: float = 0.95
    """Of the predicted bands."""
    seed: int = 0
    output: Path = Path("runs/phase_transition")


def bisect(hits: Callable[[int], bool], dim: int) -> int:
    """Find the first k in 1 ... D at which nested subspaces hit."""
    low, high = 0, dim
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if hits(middle) else (middle, high)
    return high


def orthant_is_hit(rotation: np.ndarray, k: int) -> bool:
    """Look for x ≥ 0 of sum 1 orthogonal to all but the first k columns."""
    dim = len(rotation)
    equations = np.vstack([rotation[:, k:].T, np.ones(dim)])
    found = linprog(np.zeros(dim), A_eq=equations, b_eq=np.eye(dim - k + 1)[-1], bounds=(0, None))
    return found.status == 0


def descent_cone_is_hit(rotation: np.ndarray, k: int, num_nonzero: int) -> bool:
    """Look in vain for a subgradient of ‖·‖₁ orthogonal to the first k columns."""
    on, off = rotation[:num_nonzero, :k], rotation[num_nonzero:, :k]
    found = linprog(np.zeros(len(off)), A_eq=off.T, b_eq=-on.sum(0), bounds=(-1, 1))
    return found.status == 2


@jax.jit
def first_hit_circular_cone(rotation, half_angle):
    """Find the first k columns whose span is within the half-angle of the first axis."""
    return 1 + jnp.argmax(jnp.cumsum(rotation[0] ** 2) >= jnp.cos(half_angle) ** 2)


@jax.jit
def first_hit_ellipsoid(rotation, semi_axes, distance):
    """Find the first k at which last column * distance + span of k columns meets the ellipsoid.

    The minimum of Σ x²/r² over the plane is a Schur complement, and one Cholesky factorisation
    yields those of all the leading blocks.
    """
    form = rotation.T @ (rotation / semi_axes[:, None] ** 2)
    factor = jnp.linalg.cholesky(form[:-1, :-1])
    against = jax.scipy.linalg.solve_triangular(factor, form[:-1, -1], lower=True)
    minima = distance**2 * (form[-1, -1] - jnp.cumsum(against**2))
    return jnp.where(minima[-1] <= 1, 1 + jnp.argmax(minima <= 1), len(rotation))


def draw_first_hits(dim: int, config: Config, stages: Stages) -> dict[str, np.ndarray]:
    """Return the first k that hits each set, for every rotation."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_rotations)
    with jax.enable_x64(True), stages.time("linear algebra"):
        rotations = jax.lax.map(partial(jax.random.orthogonal, n=dim), keys)
        circular = jax.vmap(first_hit_circular_cone, (0, None))(rotations, config.half_angle)
        ellipsoid = jax.vmap(first_hit_ellipsoid, (0, None, None))(
            rotations, semi_axes(dim, config), config.distance
        )
        circular, ellipsoid, rotations = map(np.asarray, (circular, ellipsoid, rotations))
    hits = {"circular": circular, "orthant": [], "l1": [], "ellipsoid": ellipsoid}
    descends = partial(descent_cone_is_hit, num_nonzero=num_nonzero(dim, config))
    with stages.time("linear programs"):
        for done, rotation in enumerate(rotations, 1):
            hits["orthant"].append(bisect(partial(orthant_is_hit, rotation), dim))
            hits["l1"].append(bisect(partial(descends, rotation), dim))
            stages.show(f"programs, D = {dim}", done, len(rotations))
    return {name: np.asarray(first) for name, first in hits.items()}


def num_nonzero(dim: int, config: Config) -> int:
    """Return the nonzeros of the vector at which ‖·‖₁ descends."""
    return max(1, round(config.nonzero_share * dim))


def semi_axes(dim: int, config: Config) -> jax.Array:
    """Return the ellipsoid's semi-axes."""
    return jnp.geomspace(*config.semi_axes, dim)


def predict(dim: int, config: Config) -> dict[str, dict]:
    """Return the predicted dimension of each set, and the exact odds where they are known."""
    axes, distance = semi_axes(dim, config), config.distance
    threshold = geometry.ellipsoid_section_threshold(axes, distance)
    dimensions = {
        "circular": geometry.statistical_dimension_circular_cone(dim, config.half_angle),
        "orthant": geometry.statistical_dimension_orthant(dim),
        "l1": geometry.statistical_dimension_l1_descent_cone(dim, num_nonzero(dim, config)),
        "ellipsoid": dim - threshold,
    }
    subspaces = geometry.intrinsic_volumes_subspace(jnp.arange(dim + 1), dim=dim)
    volumes = {
        "circular": geometry.intrinsic_volumes_circular_cone(config.half_angle, dim=dim),
        "orthant": geometry.intrinsic_volumes_orthant(dim=dim),
    }
    exact = {
        name: np.asarray(geometry.kinematic_probability(v, subspaces))
        for name, v in volumes.items()
    }
    thin = geometry.statistical_dimension_ellipsoid_cone(axes, distance)
    # A theorem for a fixed cone. The ellipsoid is seen from a new direction at every rotation, so
    # for it the band is a guide.
    band = partial(geometry.kinematic_band, dim=dim, confidence=config.confidence)
    return {
        name: {
            "predicted": float(dim - delta),
            "band": tuple(map(float, band(delta))),
            "plain_band": tuple(map(float, band(delta, method="theorem-1"))),
            "exact": exact.get(name),
            "published": float(dim - thin) if name == "ellipsoid" else None,
        }
        for name, delta in dimensions.items()
    }


def summarize(transition: Transition) -> dict:
    """Return what the result file holds of one transition."""
    probability = transition.probability()
    low, high = transition.band
    known = transition.exact is not None
    return transition._asdict() | {
        "exact": f"within {abs(probability - transition.exact).max():.3f}" if known else "unknown",
        "mean": transition.first_hits.mean(),
        "width": transition.width(),
        "hits_below_band": probability[int(low)],
        "misses_above_band": 1 - probability[int(np.ceil(high))],
    }


def conclude(transitions: dict[str, list[Transition]]) -> str:
    """Say in one sentence what the figure shows."""
    everything = [summarize(t) for series in transitions.values() for t in series]
    outside = max(max(s["hits_below_band"], s["misses_above_band"]) for s in everything)
    first, last = ([series[i] for series in transitions.values()] for i in (0, -1))
    gap = max(abs(t.first_hits.mean() - t.predicted) / t.dim for t in last)
    widths = [np.mean([t.width() for t in end]) for end in (first, last)]
    published = next(abs(t.first_hits.mean() - t.published) / t.dim for t in last if t.published)
    return (
        f"Random subspaces start to hit each set where its statistical dimension says, within "
        f"{gap:.3f} of k/D at D = {last[0].dim}; the transition sharpens about as 1/√D, from a "
        f"10-90 % width of {widths[0]:.3f} at D = {first[0].dim} to {widths[1]:.3f}, inside a band "
        f"beyond which at most {outside:.1%} fell, and the published ellipsoid formula misses it "
        f"by {published:.3f} of k/D."
    )


def main(config: Config) -> None:
    """Measure, predict, draw, and say what it shows."""
    names = {
        "circular": f"circular cone, {np.degrees(config.half_angle):.0f}°",
        "orthant": "orthant",
        "l1": f"l1 descent cone\nat {config.nonzero_share:.1%} nonzeros",
        "ellipsoid": "ellipsoid, affine subspaces\nat a distance",
    }
    transitions = {title: [] for title in names.values()}
    with Stages() as stages:
        for dim in config.dims:
            hits, predictions = draw_first_hits(dim, config, stages), predict(dim, config)
            for name, title in names.items():
                transitions[title].append(Transition(dim, hits[name], **predictions[name]))
    sentence = conclude(transitions)
    drawn = {"phase_transition.png": plot_phase_transitions(transitions, config.confidence)}
    summaries = {t: [summarize(x) for x in series] for t, series in transitions.items()}
    path = config.output / "result.json"
    finish(path, config, sentence, figures=drawn, transitions=summaries)


if __name__ == "__main__":
    main(tyro.cli(Config))
