"""Which quadrature rule closes in on (1/D) tr f(H), f = |λ|/(|λ| + c), with the fewest products?

python benchmarks/kink_at_zero.py        # half an hour on 2 cores, most of it dense eigenproblems

On synthetic spectra shaped like those of networks and on the Hessians of small trained ReLU
networks (dense, float64), for |λ| and for max(λ, 0), it measures at each Lanczos depth

- the error of each rule against the probe's own exact value, so that no probe noise hides it, and
  from which depth on it stays within 5, 2 and 1 % for every probe;
- how often the joint interval of one probe holds the truth of the spectrum;
- whether a product says more where four probes share a Krylov space (block Lanczos), or where the
  probe is projected off the null space, as if that were known from dead units.

A spectral transformation is not among them: each of its products is a solve, and a solve by Krylov
methods is many products that see no more than Lanczos itself does.

Spectra are kept in a work folder, so that a second run goes on from them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.linalg import block_diag

from jaxlimit import (
    adapters,
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
from jaxlimit._core import files
from jaxlimit.lab import figures
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lanczos import storage

DEPTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
DEFAULT_DEPTH = lanczos.FULL_DEPTH
DEFAULT_MODE = storage.choose("auto", DEFAULT_DEPTH)
RULES = ("Gauss", "node at 0", "middle of the bracket", "extrapolated")
LEVELS = (0.05, 0.02, 0.01)
CONVENTIONS = ("abs", "clip")
BUDGETS = (64, 128, 256)  # products
BLOCK, NUM_BLOCKS = 4, 3
ALTERNATIVES = ("one probe", "block of 4", "null space known")
Case = tuple[np.ndarray, dict[str, float]]  # eigenvalues, and c for each convention


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare quadrature rules at the kink."""

    num_probes: int = 4
    output: Path = Path("benchmarks/results")
    work: Path = Path("runs/kink_at_zero")


@dataclasses.dataclass(frozen=True)
class Net:
    """A ReLU network to train on digits."""

    widths: tuple[int, ...]
    l1: float
    epochs: int


NETS = {
    "D = 5,018, l1 1e-3": Net((48, 32), 1e-3, 200),
    "D = 5,018, l1 3e-4": Net((48, 32), 3e-4, 200),
    "D = 5,018, l1 5e-5": Net((48, 32), 5e-5, 100),
    "D = 10,306, l1 3e-4": Net((80, 56), 3e-4, 200),
    "D = 10,306, l1 5e-5": Net((80, 56), 5e-5, 100),
    "D = 20,064, l1 3e-4": Net((150, 64), 3e-4, 200),
}


def synthetic(dim: int = 20_000) -> dict[str, Case]:
    """Make spectra shaped like those of networks."""
    rng = np.random.default_rng(0)
    outliers = np.geomspace(1, 50, 10)
    signs = rng.choice([-1, 1], dim - 10, p=[0.3, 0.7])
    null = np.zeros(dim * 9 // 10)
    rest = dim - 10 - null.size
    spectra = {
        "90 % null, bulk": np.concatenate([null, rng.normal(size=rest) * 0.3, outliers]),
        "90 % null, heavy tails": np.concatenate(
            [null, rng.standard_t(1.5, size=rest) * 0.05, outliers]
        ),
        "all scales": np.concatenate([10 ** rng.uniform(-7, 0, dim - 10) * signs, outliers]),
    }
    return {name: (values, {"abs": 0.03, "clip": 0.03}) for name, values in spectra.items()}


def trained(net: Net) -> Case:
    """Train a network; return its Hessian's eigenvalues and the c of its own pruning limits."""
    data = datasets.load("digits", "train")
    module = models.create("fc5", num_classes=10, widths=net.widths)
    config = training.TrainingConfig(
        epochs=net.epochs, learning_rate=0.05, schedule="cosine", l1=net.l1
    )
    result = training.fit(module, data, config)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), result.params)
        images = (data.images - result.normalization.mean[0]) / result.normalization.std[0]
        loss, batches = training.make_loss(module.clone(dtype=jnp.float64)), [(images, data.labels)]
        weights, _ = flatten_weights(params)
        matvec = curvature.hessian_matvec(loss, params, batches, {})
        hessian = adapters.to_dense(matvec, weights.size, jnp.float64)
        eigenvalues = np.linalg.eigvalsh((hessian + hessian.T) / 2)
        epsilon = limits.loss_tolerance(loss, params, batches, {})
        measure = spectrum.exact_measure(jnp.asarray(eigenvalues))
        radius = {
            negative: limits.pruning_limit(measure, weights, epsilon, negative=negative).radius
            for negative in CONVENTIONS
        }
        return eigenvalues, {n: float(limits.ridge(r, epsilon)) for n, r in radius.items()}


def kept(path: Path, net: Net) -> Case:
    """Return a trained case from its file, made first if that is not there or of another net."""
    identity = dataclasses.asdict(net)
    names = {"eigenvalues", *CONVENTIONS}
    try:
        found = files.load(path, "eigenvalues with ridges", 1, names, identity=identity)
    except (FileNotFoundError, files.OtherRunError):
        eigenvalues, ridges = trained(net)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(path, 1, identity=identity, eigenvalues=eigenvalues, **ridges)
        return eigenvalues, ridges
    return found["eigenvalues"], {n: float(found[n]) for n in CONVENTIONS}


def probe_runs(eigenvalues: np.ndarray, mode: str, num_probes: int) -> list:
    """Run Lanczos to full depth; return each probe's spectral weights and its measure."""
    operator = jax.tree_util.Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32))
    runs = []
    for key in jax.random.split(jax.random.key(0), num_probes):
        start = spectrum.probe(key, eigenvalues.size)
        run = lanczos.tridiagonalize(operator, start, num_steps=max(DEPTHS), reorthogonalize=mode)
        measure = spectrum.measure_from(run, dim=eigenvalues.size)
        shorter = [spectrum.truncate(measure, min(d, int(run.num_valid))) for d in DEPTHS]
        runs.append((np.asarray(start, np.float64) ** 2, shorter))
    return runs


def readings(runs: list, eigenvalues: np.ndarray, c: float, negative: str):
    """Measure relative errors [probes, depths, rules], and which intervals hold the truth."""
    share = partial(limits.curvature_share, ridge=c, negative=negative)
    with jax.enable_x64(True):
        values = np.asarray(share(jnp.asarray(eigenvalues)))
    errors, holds = [], []
    for weights, measures in runs:
        brackets = [spectrum.trace_bracket(measure, share) for measure in measures]
        gauss, low, high = np.array([_ends(m, share) for m in measures], np.float64).T
        value = np.array([b.value for b in brackets], np.float64)
        read = np.stack([gauss, low, (low + high) / 2, value], axis=-1)
        errors.append(read / (weights @ values) - 1)
        holds.append([bool(b.lower <= values.mean() <= b.upper) for b in brackets])
    return np.array(errors), np.array(holds)


def _ends(measure, share) -> tuple:
    """Read Gauss and both ends of the bracket of one probe at full depth."""
    rules = measure.rules
    family = jnp.sum(rules.weights[0, 1] * share(rules.nodes[0, 1]), axis=-1)
    return family[-1], family[0], family.max()


def depth_needed(errors: np.ndarray, level: float) -> dict[str, int | None]:
    """Find for each rule the depth from which on every probe's error stays within `level`."""
    outside = np.abs(errors).max(0) > level  # [depths, rules]
    first = [0 if not column.any() else int(np.flatnonzero(column)[-1]) + 1 for column in outside.T]
    needed = [DEPTHS[i] if i < len(DEPTHS) else None for i in first]
    return dict(zip(RULES, needed, strict=True))


def summary(errors: np.ndarray, holds: np.ndarray) -> dict:
    """Put the errors of one case into numbers."""
    at = DEPTHS.index(DEFAULT_DEPTH)
    return {
        **{f"within {level:.0%}": depth_needed(errors, level) for level in LEVELS},
        "rms": np.sqrt((errors**2).mean(0)).T.round(5),
        "worst at the default depth": dict(
            zip(RULES, np.abs(errors[:, at]).max(0).round(5), strict=True)
        ),
        "intervals that hold the truth": holds.mean().round(4),
    }


def measure_case(case: Case, num_probes: int) -> tuple[dict, dict]:
    """Measure one spectrum; return its report and the errors in the default mode, by convention."""
    eigenvalues, ridges = case
    largest = np.abs(eigenvalues).max()
    report = {n: {"c_over_largest": c / largest} for n, c in ridges.items()}
    default = {}
    for mode in lanczos.REORTHOGONALIZE:
        runs = probe_runs(eigenvalues, mode, num_probes)
        for negative, c in ridges.items():
            errors, holds = readings(runs, eigenvalues, c, negative)
            report[negative][mode] = summary(errors, holds)
            if mode == DEFAULT_MODE:
                default[negative] = errors
    else_ = alternatives(eigenvalues, ridges["abs"])
    return {"dim": eigenvalues.size, "alternatives, node at 0": else_, **report}, default


def table(report: dict) -> str:
    """Lay out the products that each rule needs, in the default mode and |λ|, case by case."""
    needs = [case["abs"][DEFAULT_MODE] for case in report.values()]
    columns = {"spectrum": list(report)}
    for rule in RULES:
        columns[f"{rule}: 5, 2, 1 %"] = [
            ", ".join(str(need[f"within {level:.0%}"][rule] or "-") for level in LEVELS)
            for need in needs
        ]
    return markdown_table(columns)


def block_lanczos(eigenvalues: np.ndarray, start: np.ndarray, num_blocks: int) -> tuple:
    """Run Lanczos on diag(eigenvalues) from a block [D, b], reorthogonalised fully, in float64."""
    block, first = np.linalg.qr(start)
    basis, diagonal, off_diagonal = block, [], []
    for _ in range(num_blocks):
        product = eigenvalues[:, None] * block
        diagonal.append(block.T @ product)
        for _ in range(2):
            product -= basis @ (basis.T @ product)
        block, coupling = np.linalg.qr(product)
        off_diagonal.append(coupling)
        basis = np.hstack([basis, block])
    return first, diagonal, off_diagonal


def pinned_trace(run: tuple, num_blocks: int, f: Callable) -> float:
    """Read the mean of f over the probes of a block off its Gauss-Radau rule with a node at 0."""
    first, diagonal, off_diagonal = run
    size = len(first)
    matrix = np.asarray(block_diag(*diagonal[:num_blocks], np.zeros((size, size))), float)
    for i, coupling in enumerate(off_diagonal[:num_blocks]):
        below = slice((i + 1) * size, (i + 2) * size), slice(i * size, (i + 1) * size)
        matrix[below], matrix[below[::-1]] = coupling, coupling.T
    # Golub (1973), block by block: the last diagonal block for which 0 is an eigenvalue.
    last, corner = off_diagonal[num_blocks - 1], np.eye(num_blocks * size)[:, -size:]
    solved = np.linalg.solve(matrix[:-size, :-size], corner)
    matrix[-size:, -size:] = last @ solved[-size:] @ last.T
    nodes, vectors = np.linalg.eigh(matrix)
    return float(((first.T @ vectors[:size]) ** 2).sum(0) @ f(nodes)) / size


def alternatives(eigenvalues: np.ndarray, c: float) -> dict[str, dict[int, float]]:
    """Measure what else a product could say: root mean square errors against the own truth."""
    rng = np.random.default_rng(0)
    f = lambda x: np.abs(x) / (np.abs(x) + c)  # noqa: E731
    seen = np.abs(eigenvalues) > 1e-9 * np.abs(eigenvalues).max()
    errors = {name: {m: [] for m in BUDGETS} for name in ALTERNATIVES}
    for _ in range(NUM_BLOCKS):
        probes = rng.normal(size=(eigenvalues.size, BLOCK))
        probes /= np.linalg.norm(probes, axis=0)
        starts = dict(
            zip(ALTERNATIVES, (probes[:, :1], probes, seen[:, None] * probes[:, :1]), strict=True)
        )
        for name, start in starts.items():
            size = start.shape[1]
            run = block_lanczos(eigenvalues, start, max(BUDGETS) // size)
            truth = f(eigenvalues) @ (start**2).mean(1)
            for budget in BUDGETS:
                value = pinned_trace(run, budget // size, f)
                errors[name][budget].append(value / truth - 1)
    return {
        name: {m: float(np.sqrt(np.mean(np.square(e)))) for m, e in of_name.items()}
        for name, of_name in errors.items()
    }


def conclude(report: dict) -> str:
    """Put what the networks show into a sentence."""
    found = [report[name][n][DEFAULT_MODE] for name in NETS for n in CONVENTIONS]
    worst = {rule: max(one["worst at the default depth"][rule] for one in found) for rule in RULES}
    held = min(
        case[n][DEFAULT_MODE]["intervals that hold the truth"]
        for case in report.values()
        for n in CONVENTIONS
    )
    return (
        f"On the trained networks at depth {DEFAULT_DEPTH} the worst of all probes is "
        f"{worst['extrapolated']:.1%} off its own truth extrapolated, "
        f"{worst['middle of the bracket']:.0%} in the middle of the bracket, {worst['Gauss']:.0%} "
        f"by plain Gauss; in every case at least {held:.0%} of the joint intervals, over all "
        "depths, hold the truth of the spectrum."
    )


def main(config: Config) -> None:
    """Run every spectrum in every mode and convention."""
    nets = {
        name: kept(config.work / f"net-{i}.npz", net) for i, (name, net) in enumerate(NETS.items())
    }
    report, drawn = {}, {}
    for name, case in (synthetic() | nets).items():
        report[name], errors = measure_case(case, config.num_probes)
        drawn[name] = np.sqrt((errors["abs"] ** 2).mean(0))
        console.print(name, {n: report[name][n][DEFAULT_MODE]["within 2%"] for n in CONVENTIONS})
    console.print(table(report), soft_wrap=True)
    console.print(conclusion := conclude(report))
    content = {
        "environment": environment(),
        "conclusion": conclusion,
        "num_probes": config.num_probes,
        "depths": DEPTHS,
        "rules": RULES,
        "table": table(report),
        "cases": report,
    }
    write_json(config.output / "kink_at_zero.json", content)
    figure = figures.plot_rule_errors(drawn, DEPTHS, RULES, level=0.02)
    plotting.save(figure, config.output / "kink_at_zero.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
