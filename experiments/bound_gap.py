"""The gap between the published bounds, network by network: is the upper one near the lower one?

python experiments/bound_gap.py                                       # FC5 and FC12 on digits
python experiments/bound_gap.py --networks --runs runs/A/seed-0 runs/B/seed-0
python experiments/bound_gap.py --networks vgg16 --base.dataset cifar10 --base.max-images 256
    --base.epochs 2 --base.num-steps 16 --base.num-gap-steps 16 --base.num-ratios 12

Every network is a run of `pruning_limit.py`: read where its folder is given or there already, made
else. The default takes minutes on two cores; convolutional networks on more than digits want a GPU,
and on a CPU are for trial with few images and steps, which the table then says.
"""

import dataclasses
from pathlib import Path
from typing import Any

import tyro
from pruning_limit import Config as RunConfig
from pruning_limit import check_lone, known, read_result, run

from jaxlimit import plotting
from jaxlimit.lab import figures
from jaxlimit.lab.reporting import console, environment, markdown_table, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the lower and the upper bound."""

    runs: tuple[Path, ...] = ()
    """Run folders with result.json, to be read."""
    networks: tuple[str, ...] = ("fc5", "fc12")
    """Networks to run as `base` says, each with its own folder under `output`."""
    base: RunConfig = dataclasses.field(default_factory=RunConfig)
    """Settings of those runs, as of `pruning_limit.py`; its seeds beyond the first are left
    out, and it must be one process's."""
    output: Path = Path("runs/bound_gap")


def results(config: Config) -> list[dict[str, Any]]:
    """Read the runs that are there and make the others."""
    read = [read_result(folder) for folder in config.runs]
    for name in config.networks:
        seed = config.base.seeds[0]
        folder = config.output / f"{name}-{config.base.dataset}".replace("/", "-")
        wanted = dataclasses.replace(config.base, model=name, output=folder)
        read.append(known(folder / f"seed-{seed}", wanted) or run(wanted, seed))
    return read


def row(result: dict[str, Any]) -> dict[str, Any]:
    """Take from a result what concerns the two bounds."""
    settings, bound, ratio = result["config"], result["upper_bound"], result["prediction"]["ratio"]
    low, high = result["gap_interval"]
    only = settings.get("max_images")
    name = "{model}, {dataset}, l1 {l1:g}".format(**settings)
    return {
        "name": name if only is None else f"{name}, trial on {only} images",
        "dim": result["dim"],
        "trial": only is not None,
        "epochs": settings["epochs"],
        "hessian_images": result["hessian_images"],
        "depth": result["depth"],
        "gap_depth": settings["num_gap_steps"],
        **{name: result["prediction"][name] for name in ("ratio", "lower", "upper")},
        "upper_bound": {"ratio": bound["value"], "lower": bound["lower"], "upper": bound["upper"]},
        "gap": result["gap"],
        "gap_interval": [low, high],
        "gap_over_ratio": result["gap"] / ratio,
        "measured": result["measured"]["by_loss"],
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
    """Say in one sentence how near the bounds are to each other."""
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
    check_lone(config.base)
    rows = [row(result) for result in results(config)]
    if not rows:
        raise ValueError("runs or networks must name at least one, got none")
    sentence, laid_out = conclude(rows), table(rows)
    figure = figures.plot_gaps(rows, title="The published bounds and the gap Δ between them")
    plotting.save(figure, config.output / "bound_gap.png")
    content = {"sentence": sentence, "rows": rows, "table": laid_out,
               "config": config, "environment": environment()}  # fmt: skip
    write_json(config.output / "result.json", content)
    console.print(laid_out, soft_wrap=True)
    console.print(sentence)


if __name__ == "__main__":
    main(tyro.cli(Config))
