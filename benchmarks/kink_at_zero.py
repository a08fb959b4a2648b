"""Which quadrature rule closes in on (1/D) tr |H|(|H| + c)⁻¹ with the fewest products?

python benchmarks/kink_at_zero.py        # about ten minutes on 2 cores

On spectra with known answers, synthetic ones shaped like those of networks and the Hessians of
small trained ReLU networks (dense, float64), it measures the error of each rule at each Lanczos
depth against the probe's own exact value, so that no probe noise hides it. Writes the errors, the
depth from which on each rule stays within 5, 2 and 1 %, and a figure.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro

from jaxlimit import (
    curvature,
    datasets,
    flatten_weights,
    lanczos,
    limits,
    models,
    plotting,
    spectrum,
    training,
)
from jaxlimit.reporting import console, environment, write_json

DEPTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
RULES = ("Gauss", "node at 0", "middle of the bracket", "extrapolated")
LEVELS = (0.05, 0.02, 0.01)


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare quadrature rules at the kink."""

    num_probes: int = 4
    output: Path = Path("benchmarks/results")


def synthetic(dim: int = 20_000) -> dict[str, tuple[np.ndarray, float]]:
    """Make spectra shaped like those of networks, each with the c that counts there."""
    rng = np.random.default_rng(0)
    outliers = np.geomspace(1, 50, 10)
    signs = rng.choice([-1, 1], dim - 10, p=[0.3, 0.7])
    null = np.zeros(dim * 9 // 10)
    rest = dim - 10 - null.size
    return {
        "90 % null, bulk": (np.concatenate([null, rng.normal(size=rest) * 0.3, outliers]), 0.03),
        "90 % null, heavy tails": (
            np.concatenate([null, rng.standard_t(1.5, size=rest) * 0.05, outliers]),
            0.03,
        ),
        "all scales": (
            np.concatenate([10 ** rng.uniform(-7, 0, dim - 10) * signs, outliers]),
            0.03,
        ),
    }


def trained(l1: float, epochs: int) -> tuple[np.ndarray, float]:
    """Train a small ReLU network on digits; return its Hessian's eigenvalues and its own c."""
    data = datasets.load("digits", "train")
    module = models.create("fc5", num_classes=10, widths=(48, 32))
    result = training.fit(
        module,
        data,
        training.TrainingConfig(epochs=epochs, learning_rate=0.05, schedule="cosine", l1=l1),
    )
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), result.params)
        images = (data.images - result.normalization.mean[0]) / result.normalization.std[0]
        batches = [(images, data.labels)]
        loss = training.make_loss(module.clone(dtype=jnp.float64))
        weights, _ = flatten_weights(params)
        matvec = curvature.hessian_matvec(loss, params, batches, {})
        rows = jax.lax.map(matvec, jnp.eye(weights.size), batch_size=64)
        eigenvalues = np.linalg.eigvalsh(np.asarray(rows + rows.T) / 2)
        epsilon = limits.loss_tolerance(loss, params, batches, {})
        limit = limits.pruning_limit(
            spectrum.exact_measure(jnp.asarray(eigenvalues)), weights, epsilon
        )
        return eigenvalues, float(limits.ridge(limit.radius, epsilon))


def errors(eigenvalues: np.ndarray, c: float, mode: str, num_probes: int) -> np.ndarray:
    """Measure relative errors [probes, depths, rules]."""
    share = lambda x: limits.curvature_share(x, c)  # noqa: E731
    operator = jax.tree_util.Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32))
    exact = np.abs(eigenvalues) / (np.abs(eigenvalues) + c)
    table = []
    for key in jax.random.split(jax.random.key(0), num_probes):
        start = spectrum.probe(key, eigenvalues.size)
        run = lanczos.tridiagonalize(operator, start, num_steps=max(DEPTHS), reorthogonalize=mode)
        measure = spectrum.measure_from(run, dim=eigenvalues.size)
        truth = np.asarray(start, np.float64) ** 2 @ exact
        table.append([[v / truth - 1 for v in readings(measure, depth, share)] for depth in DEPTHS])
    return np.array(table, np.float64)


def readings(measure, depth, share) -> tuple[float, ...]:
    """Read all rules off the first `depth` steps."""
    measure = spectrum.truncate(measure, min(depth, int(measure.num_valid[0])))
    assert measure.family_nodes is not None
    assert measure.family_weights is not None
    family = jnp.sum(measure.family_weights[0, 1] * share(measure.family_nodes[0, 1]), axis=-1)
    gauss, pinned, greatest = family[-1], family[0], family.max()
    extrapolated = spectrum.trace_bracket(measure, share).value
    return tuple(map(float, (gauss, pinned, (pinned + greatest) / 2, extrapolated)))


def depth_needed(table: np.ndarray, level: float) -> list[int | None]:
    """Find for each rule the depth from which on every probe's error stays within `level`."""
    worst = np.abs(table).max(0)
    needed = []
    for rule in range(len(RULES)):
        outside = np.flatnonzero(worst[:, rule] > level)
        first = 0 if not outside.size else outside[-1] + 1
        needed.append(DEPTHS[first] if first < len(DEPTHS) else None)
    return needed


def draw(tables: dict[str, np.ndarray], path: Path) -> None:
    """Draw the root-mean-square error of each rule against depth."""
    figure, panels = plt.subplots(
        1, len(tables), figsize=(3 * len(tables), 3.8), sharey=True, layout="constrained"
    )
    colours = (plotting.NEUTRAL, "#a16207", plotting.MEASURED, plotting.PREDICTED)
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        for rule, colour in enumerate(colours):
            rms = np.sqrt((table[..., rule] ** 2).mean(0))
            axes.loglog(DEPTHS, np.maximum(rms, 1e-4), color=colour, label=RULES[rule])
        axes.axhline(0.02, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="products")
        axes.set_xticks(DEPTHS[::2], [str(d) for d in DEPTHS[::2]])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("error of (1/D) tr f(H), root mean square")
    figure.suptitle("Error of each rule against the number of products; dotted: 2 %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    plotting.save(figure, path)


def main(config: Config) -> None:
    """Run every spectrum, with and without reorthogonalisation."""
    cases = synthetic() | {
        "ReLU net, l1 1e-3": trained(1e-3, 200),
        "ReLU net, l1 3e-4": trained(3e-4, 200),
        "ReLU net, l1 5e-5": trained(5e-5, 100),
    }
    report, selective = {}, {}
    for name, (eigenvalues, c) in cases.items():
        report[name] = {"dim": eigenvalues.size, "c_over_largest": c / np.abs(eigenvalues).max()}
        for mode in lanczos.REORTHOGONALIZE:
            table = errors(eigenvalues, c, mode, config.num_probes)
            report[name][mode] = {
                f"within {level:.0%}": dict(zip(RULES, depth_needed(table, level), strict=True))
                for level in LEVELS
            }
            report[name][mode]["rms"] = np.sqrt((table**2).mean(0)).T.round(5).tolist()
            if mode == "selective":
                selective[name] = table
        console.print(name, {m: report[name][m]["within 2%"] for m in lanczos.REORTHOGONALIZE})
    write_json(
        config.output / "kink_at_zero.json",
        {"environment": environment(), "depths": DEPTHS, "rules": RULES, "cases": report},
    )
    draw(selective, config.output / "kink_at_zero.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
