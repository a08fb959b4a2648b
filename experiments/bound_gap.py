"""The gap between the published bounds, network by network: is the upper one near the lower one?

python experiments/bound_gap.py                                       # FC5 and FC12 on digits
python experiments/bound_gap.py --networks --runs runs/A/seed-0 runs/B/seed-0
python experiments/bound_gap.py --networks vgg16 --base.dataset cifar10 --base.max-images 256
    --base.epochs 2 --base.num-steps 16 --base.num-gap-steps 16 --base.num-ratios 12

Every network is a run of `pruning_limit.py`: read if its folder is given or exists, otherwise made.
The default takes minutes on two cores. Convolutional networks on more than digits need a GPU; on a
CPU they are trials with few images and steps, and the table says so.
"""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from jaxlimit.lab import figures
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.results import RunResult, read_result
from jaxlimit.lab.runs import known_or_run
from jaxlimit.lab.settings import RunConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the lower and the upper bound."""

    runs: tuple[Path, ...] = ()
    """Run folders with result.json, to be read."""
    networks: tuple[str, ...] = ("fc5", "fc12")
    """Networks to run as `base` says, each with its own folder under `output`."""
    base: RunConfig = dataclasses.field(default_factory=lambda: RunConfig(find_mask=False))
    """Settings of those runs, those of `pruning_limit.py`."""
    seed: int = 0
    output: Path = Path("runs/bound_gap")


def results(config: Config) -> list[RunResult]:
    """Read the existing runs and make the others."""
    read = [read_result(folder) for folder in config.runs]
    for name in config.networks:
        folder = config.output / f"{name}-{config.base.dataset}".replace("/", "-")
        wanted = config.base.replace(model=name)
        read.append(known_or_run(wanted, config.seed, folder / f"seed-{config.seed}"))
    return read


def row(result: RunResult) -> dict[str, Any]:
    """Take from a result what concerns the two bounds."""
    settings, prediction, bound = result.config, result.prediction, result.upper_bound
    only = settings.max_images
    name = f"{settings.model}, {settings.dataset}, l1 {settings.training.l1:g}"
    return {
        "name": name if only is None else f"{name}, trial on {only} images",
        "dim": result.dim,
        "trial": only is not None,
        "epochs": settings.training.epochs,
        "hessian_images": result.hessian_images,
        "depth": result.depth,
        "gap_depth": settings.num_gap_steps,
        "ratio": prediction.ratio,
        "lower": prediction.lower,
        "upper": prediction.upper,
        "upper_bound": {"ratio": bound.value, "lower": bound.lower, "upper": bound.upper},
        "gap": result.gap,
        "gap_interval": list(result.gap_interval),
        "gap_over_ratio": result.gap / prediction.ratio,
        "measured": result.measured.by_loss,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out in markdown."""
    percent = lambda x: f"{100 * x:.3g} %"  # noqa: E731
    return markdown_table(
        {
            "network, data": [r["name"] for r in rows],
            "D": [f"{r['dim']:,}" for r in rows],
            "epochs": [f"{r['epochs']}" for r in rows],
            "Hessian images": [f"{r['hessian_images']:,}" for r in rows],
            "depth, of gap": [f"{r['depth']}, {r['gap_depth']}" for r in rows],
            "ρ_L = ρ*": [percent(r["ratio"]) for r in rows],
            "ρ_U": [percent(r["upper_bound"]["ratio"]) for r in rows],
            "Δ": [
                "{} [{}, {}]".format(*map(percent, (r["gap"], *r["gap_interval"]))) for r in rows
            ],
            "Δ/ρ*": [f"{r['gap_over_ratio']:.2f}" for r in rows],
            "measured": [percent(r["measured"]) for r in rows],
        }
    )


def conclude(rows: list[dict[str, Any]]) -> str:
    """Say in one sentence how close the bounds are."""
    rows = [r for r in rows if not r["trial"]] or rows
    shares = [r["gap_over_ratio"] for r in rows]
    inside = [r["ratio"] <= r["measured"] <= r["upper_bound"]["ratio"] for r in rows]
    return (
        f"Over {len(rows)} runs the upper bound exceeds the lower one by {min(shares):.2f} to "
        f"{max(shares):.2f} times the lower one itself; the measured limit lies between the two "
        f"in {sum(inside)} of them."
    )


def main(config: Config) -> None:
    """Collect the rows, write, draw, and say what they show."""
    rows = [row(result) for result in results(config)]
    if not rows:
        raise ValueError("runs or networks must name at least one, got none")
    sentence, laid_out = conclude(rows), table(rows)
    figure = figures.plot_gaps(rows, title="The published bounds and the gap Δ between them")
    path, drawn = config.output / "result.json", {"bound_gap.png": figure}
    finish(path, config, sentence, table=laid_out, figures=drawn, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Config))
