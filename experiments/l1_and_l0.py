"""When does l1 give the limit of l0?

python experiments/l1_and_l0.py                                  # FC5 on digits, three strengths
python experiments/l1_and_l0.py --strengths 1e-4 1e-3 --seeds 0 1
python experiments/l1_and_l0.py --smoke                          # in a minute, that it runs

At an exact minimum under l1, magnitude is the order that the first order of the loss gives. So a
trained network is polished by proximal steps over all examples, with momentum, at a rate of
.9/λ_max (below the 2/λ_max of plain steps). After some numbers of steps, what magnitude keeps is
compared with the certificate. ε is that of each polished network. Units whose weights have all
become zero are removed (`pruning.compress`), which changes no output.

Written down before the runs: polished until max | |g|/l1 - 1 | of the live weights is below .05,
magnitude among the live weights keeps less than 1.1 times what is certified, at every strength.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from jaxlimit import curvature, datasets, flatten_weights, lanczos, limits, pruning
from jaxlimit import training as train
from jaxlimit.lab import figures, runs
from jaxlimit.lab.console import Stages
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.points import known_or_made
from jaxlimit.lab.settings import RunConfig

RESIDUAL, RATIO = 0.05, 1.1
METHODS = ("magnitude", "live magnitude", "saliency", "relaxed", "greedy")


@dataclasses.dataclass(frozen=True)
class Config:
    """Polish networks trained under l1, and compare magnitude with the certificate."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """Settings of the training, those of `pruning_limit.py`; its l1 is one of `strengths`."""
    strengths: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    seeds: tuple[int, ...] = (0,)
    stages: tuple[int, ...] = (0, 300, 3000, 30_000)
    """Proximal steps in all at which to measure."""
    smoke: bool = False
    """Two epochs, a few images and steps: shows that the command runs, and nothing else."""
    output: Path = Path("runs/l1_and_l0")

    def __post_init__(self) -> None:
        """Refuse what would leave nothing to do."""
        for name in ("strengths", "seeds", "stages"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, got none")
        if list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"stages must increase, got {self.stages}")


def largest_eigenvalue(problem: tuple) -> float:
    """Return λ_max of the Hessian."""
    operator = curvature.hessian_matvec(*problem)
    key = jax.random.key(7)
    found = lanczos.extremal_eigenpairs(operator, key, num_pairs=1, which="largest", tolerance=1e-2)
    return float(found.values[0])


def measure(problem: tuple, l1: float, seed: int, methods: tuple[str, ...]) -> dict[str, Any]:
    """Compare magnitude and the smallest mask with the certificate, and measure the l1 residual."""
    epsilon = limits.loss_tolerance(*problem)
    key = jax.random.fold_in(jax.random.key(seed), 2)
    found = pruning.smallest_mask(*problem, epsilon=epsilon, key=key, methods=methods)
    kept = {candidate.method: candidate.num_kept for candidate in found.candidates}
    live = pruning.flat_mask(found.live, problem[1])
    weights, _ = flatten_weights(problem[1])
    gradient = curvature.mean_gradient(*problem)
    residual = pruning.l1_residual(gradient, weights, l1, support=live)
    certified = found.certificate.num_kept if found.certificate else 0
    return {
        "epsilon": float(found.epsilon),
        "loss": found.dense_loss,
        "residual": float(residual.maximum),
        "median": float(residual.median),
        "num_live": int(live.sum()),
        "num_nonzero": int((weights != 0).sum()),
        "kept": kept,
        "found": {"method": found.method, "num_kept": found.num_kept},
        "certified": certified,
        "shares": None if found.shares is None else found.shares._asdict(),
    }


def analyse(config: Config, l1: float, seed: int) -> list[dict[str, Any]]:
    """Return what one network shows at each stage, from its file if that is there."""
    run = config.run.replace(l1=l1)
    stages, methods = config.stages, METHODS
    if config.smoke:  # where nothing is dead yet, a certificate takes minutes
        run, stages, methods = run.replace(max_images=128, epochs=2), (0, 5), ("live magnitude",)
    folder = config.output / run.name() / f"seed-{seed}"
    told = {"run": run, "stages": stages}
    make = lambda: {"rows": polish(run, l1, seed, stages, methods, folder)}  # noqa: E731
    return known_or_made(folder / "stages.json", told, make)["rows"]


def polish(
    run: RunConfig, l1: float, seed: int, stages: tuple[int, ...], methods: tuple[str, ...],
    folder: Path,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train one network, polish it by proximal steps, and measure it at each stage."""
    rows: list[dict[str, Any]] = []
    with Stages() as progress:
        net = runs.train(run, seed, folder, progress)
        module, loss, params, before = net.module, net.loss, net.trained.params, 0
        source = datasets.to_batches(net.train), net.trained.state
        stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], tuple(net.train[:2]))
        curved = largest_eigenvalue((loss, params, *source))
        for steps in stages:
            with progress.time(f"{steps} steps"):
                settings = {"l1": l1, "rate": 0.9 / curved, "num_steps": steps - before}
                params = train.proximal_steps(loss, params, stacked, source[1], **settings).params
            if steps:  # units that came to exact zeros no longer cost anything
                module, params = pruning.compress(module, params, source[1])[:2]
                loss = train.make_loss(module, net.trained.normalization)
            with progress.time("measuring"):
                found = measure((loss, params, *source), l1, seed, methods)
            rows.append({"l1": l1, "seed": seed, "steps": steps, "largest": curved} | found)
            before = steps
    return rows


def with_ratios(row: dict[str, Any]) -> dict[str, Any]:
    """Add the ratios to what is certified."""
    least = max(row["certified"], 1)
    counts = {"all": row["kept"]["magnitude"], "live": row["kept"]["live magnitude"],
              "found": row["found"]["num_kept"]}  # fmt: skip
    return row | {name: count / least for name, count in counts.items()}


def conclude(rows: list[dict[str, Any]]) -> str:
    """Say whether the claim held."""
    polished = [row for row in rows if row["residual"] < RESIDUAL]
    first = [row for row in rows if row["steps"] == min(r["steps"] for r in rows)]
    said = ", ".join(f"{row['live']:.2f} at l1 {row['l1']:g}" for row in first)
    last = max(row["steps"] for row in rows)
    then = ", ".join(
        f"{row['live']:.2f} (residual {row['residual']:.2g}, median {row['median']:.2g})"
        for row in rows if row["steps"] == last
    )  # fmt: skip
    if not polished:
        verdict = f"no network came to a residual below {RESIDUAL}, so the claim was not tested"
    else:
        worst = max(row["live"] for row in polished)
        held = "held" if worst < RATIO else "failed"
        verdict = f"below a residual of {RESIDUAL} it is {worst:.2f} at most: the claim {held}"
    return (
        f"Magnitude among live weights keeps {said} times what is certified as trained, and after "
        f"{last:,} proximal steps {then}; {verdict} (claim: below {RATIO})."
    )


def main(config: Config) -> None:
    """Run every strength and seed, write, draw, and say what came out."""
    pairs = [(l1, seed) for l1 in config.strengths for seed in config.seeds]
    done = [analyse(config, *pair) for pair in pairs[: 1 if config.smoke else None]]
    rows = [with_ratios(row) for part in done for row in part]
    sentence = conclude(rows)
    columns = {
        "l1": [f"{row['l1']:g}" for row in rows],
        "seed": [str(row["seed"]) for row in rows],
        "steps": [f"{row['steps']:,}" for row in rows],
        "residual, largest": [f"{row['residual']:.3g}" for row in rows],
        "median": [f"{row['median']:.3g}" for row in rows],
        "live": [f"{row['num_live']:,}" for row in rows],
        "certified": [f"{row['certified']:,}" for row in rows],
        "found / certified": [f"{row['found']:.3g}" for row in rows],
        "magnitude / certified": [f"{row['all']:.3g}" for row in rows],
        "among live": [f"{row['live']:.3g}" for row in rows],
    }
    table = markdown_table(columns)
    drawn = {"l1_and_l0.png": figures.plot_residuals(rows, claim=(RESIDUAL, RATIO))}
    finish(config.output / "result.json", config, sentence, table=table, figures=drawn, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Config))
