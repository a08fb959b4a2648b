"""Compare certificate and smallest mask with the best of all 2ᴰ masks.

python experiments/brute_force.py                 # a minute: random quadratics, and small networks
python experiments/brute_force.py --smoke

A linear network with square loss is its own quadratic, so the certificate must lie below the best
of all masks, and the mask found above it; the table has the distances in weights. For trained
networks there are two best masks, by the quadratic and by the true loss.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxlimit import curvature, flatten_weights, pruning
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.outcome import finish

KINDS = ("plain", "zero rows", "rank one", "equal weights", "ties", "ε = 0", "ε huge",
         "not at a minimum")  # fmt: skip
NET = "tanh network, trained"


@dataclasses.dataclass(frozen=True)
class Config:
    """Search over all masks of small problems."""

    dim: int = 10
    """Weights of the quadratics."""
    num_seeds: int = 12
    """Problems of a kind."""
    smoke: bool = False
    """One problem of two kinds: shows that the command runs, and nothing else."""
    output: Path = Path(__file__).parent / "results" / "brute_force"


def squares(outputs: Any, batch: Any) -> Any:
    """Return half of the mean square."""
    return 0.5 * jnp.mean((outputs - batch[1]) ** 2)


def outputs_of_net(params: Any, batch: Any) -> Any:
    """Return the outputs of a network of 3 inputs and 3 units."""
    return jnp.tanh(batch[0] @ params["in"] + params["bias"]) @ params["out"]


LINEAR = curvature.split_loss(lambda w, batch: batch[0] @ w, squares)
TANH = curvature.split_loss(outputs_of_net, squares)


def quadratic(kind: str, dim: int, seed: int) -> tuple[Any, Any, float]:
    """Draw weights, examples and ε of a linear network."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(24, dim)) * rng.uniform(0.1, 2, dim)
    w, noise = rng.normal(size=dim), 0.1 * rng.normal(size=24)
    epsilon = {"ε = 0": 0.0, "ε huge": 1e6}.get(kind, rng.uniform(0.1, 2))
    if kind == "zero rows":
        x[:, ::3] = 0
    if kind == "rank one":
        x = rng.normal(size=(24, 1)) * rng.normal(size=dim)
    if kind == "equal weights":
        w = np.ones(dim)
    if kind == "ties":
        half = dim // 2
        x, w = np.repeat(x[:, :half], 2, 1), np.repeat(w[:half], 2)
    if kind == "not at a minimum":
        noise = x @ rng.normal(size=w.size)
    batch = jnp.asarray(x[None], jnp.float32), jnp.asarray((x @ w + noise)[None], jnp.float32)
    return jnp.asarray(w, jnp.float32), batch, float(epsilon)


def network(seed: int) -> tuple[Any, Any, float]:
    """Train a network of 15 weights on the outputs of another one."""
    rng = np.random.default_rng(seed)
    shapes = {"in": (3, 3), "bias": (3,), "out": (3,)}
    other, params = ({n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
                     for _ in range(2))  # fmt: skip
    x = jnp.asarray(rng.normal(size=(60, 3)), jnp.float32)
    y = outputs_of_net(other, (x,)) + 0.1 * jnp.asarray(rng.normal(size=60), jnp.float32)
    descend = jax.jit(
        lambda p: jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(TANH)(p, (x, y)))
    )
    for _ in range(1500):
        params = descend(params)
    return params, (x[None], y[None]), float(rng.uniform(0.01, 0.2))


def best(rises: np.ndarray, masks: np.ndarray, epsilon: float) -> int:
    """Return how few weights a mask within ε keeps; float32 may differ at the edge."""
    return int(masks[rises <= epsilon * (1 + 1e-5) + 1e-9].sum(1).min())


def compare(loss: Any, params: Any, batches: Any, epsilon: float) -> dict[str, int | None]:
    """Count what the certificate, the search, magnitude and the best of all masks keep."""
    found = pruning.smallest_mask(loss, params, batches, epsilon=epsilon, key=jax.random.key(0))
    weights, unflatten = flatten_weights(params)
    masks = np.array(list(itertools.product([False, True], repeat=weights.size)))
    batch = tuple(leaf[0] for leaf in batches)
    losses = jax.lax.map(
        lambda mask: loss(unflatten(jnp.where(mask, weights, 0)), batch),
        jnp.asarray(masks),
        batch_size=4096,
    )
    rises = np.asarray(losses, float) - float(losses[-1])  # the last mask keeps all
    operator = curvature.gauss_newton_matvec(loss, params, batches)
    gradient = np.asarray(curvature.mean_gradient(loss, params, batches), float)
    matrix = np.asarray(jax.vmap(operator)(jnp.eye(weights.size)), float)
    removed = np.where(masks, 0, np.asarray(weights, float))
    quadratic = -removed @ gradient + 0.5 * np.sum((removed @ matrix) * removed, 1)
    assert found.certificate is not None
    return {
        "certified": found.certificate.num_kept,
        "optimum of q": best(quadratic, masks, epsilon),
        "optimum": best(rises, masks, epsilon),
        "found": found.num_kept,
        "magnitude": found.candidates[0].num_kept,
    }


def main(config: Config) -> None:
    """Compare problem by problem, write, and say how far apart the sides are."""
    kinds, seeds = ([*KINDS, NET], config.num_seeds) if not config.smoke else (KINDS[:2], 1)
    counts: dict[str, list] = {}
    for kind in kinds:
        for seed in range(seeds):
            loss = TANH if kind == NET else LINEAR
            problem = network(seed) if kind == NET else quadratic(kind, config.dim, seed)
            counts.setdefault(kind, []).append(compare(loss, *problem))
    gaps = {
        "optimum of q - certified": ("optimum of q", "certified"),
        "found - optimum": ("found", "optimum"),
        "magnitude - optimum": ("magnitude", "optimum"),
    }
    columns = {"problems": list(counts), "optimum": [
        f"{np.mean([c['optimum'] for c in rows]):.2f}" for rows in counts.values()
    ]}  # fmt: skip
    for name, (high, low) in gaps.items():
        differences = [[c[high] - c[low] for c in rows] for rows in counts.values()]
        columns[name] = [f"{np.mean(d):.2f} (at most {max(d)})" for d in differences]
    broken = [kind for kind, rows in counts.items()
              if any(c["certified"] > c["optimum of q"] or c["found"] < c["optimum"]
                     for c in rows)]  # fmt: skip
    table = markdown_table(columns)
    sentence = f"Sides that did not hold: {', '.join(broken) or 'none'} (claim: none)."
    finish(config.output / "result.json", config, sentence, table=table, counts=counts)


if __name__ == "__main__":
    main(tyro.cli(Config))
