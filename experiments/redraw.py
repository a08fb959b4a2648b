"""Redraw the committed figures from the committed results.

python experiments/redraw.py                                  # those of both results folders
python experiments/redraw.py --folders runs/A/seed-0          # those of runs
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxlimit import plotting
from jaxlimit.lab import figures, report, sides_table
from jaxlimit.lab.console import console
from jaxlimit.lab.content import read_json
from jaxlimit.lab.results import SPECTRA, read_result, read_spectrum

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "results"
FACTORS = ("learning_rate", "batch_size", "sam_radius", "l2", "l1")
NETWORKS = ("fc5-digits", "fc12-digits", "resnet18-digits", "fc5-cifar10-annealed",
            "fc12-cifar10-annealed", "fc5-cifar10-paper", "fc12-cifar10-paper")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw figures anew."""

    folders: tuple[Path, ...] = ()
    """Run folders with a spectrum; by default all figures that committed results hold."""


def of_run(folder: Path) -> None:
    """Draw the figures of a run."""
    result = read_result(folder)
    report.draw(folder, read_spectrum(folder, result), result, kinds=("png",))
    console.print(f"drew the figures of {folder}")


def name_of(settings: dict[str, Any]) -> str:
    """Name a network by the settings of its run."""
    return f"{settings['model']} on {settings['dataset']}"


def of_depth(content: dict[str, Any]) -> Any:
    """Draw the bound against depth."""
    return figures.plot_depth(content["series"], title="The bound against Lanczos depth")


def of_gap(content: dict[str, Any]) -> Any:
    """Draw both published bounds."""
    return figures.plot_gaps(content["rows"], title="The published bounds and the gap Δ")


def of_knobs(content: dict[str, Any]) -> Any:
    """Draw one knob at a time."""
    title = f"One knob at a time, {name_of(content['network'])}"
    return figures.plot_sensitivity(content["knobs"], title=title)


def of_factors(content: dict[str, Any]) -> Any:
    """Draw the limit against flatness and magnitude."""
    base = content["config"]["base"]
    base = base | base.get("training", {})
    factors = {name: base[name] for name in FACTORS}
    return figures.plot_factors(content["rows"], factors, title=name_of(base))


def of_rounds(content: dict[str, Any]) -> Any:
    """Draw pruning in rounds."""
    epsilon, base = content["rows"][0]["epsilon"], content["config"]["base"]
    return figures.plot_rounds(content["rounds"], epsilon, title=name_of(base))


def of_lomp(content: dict[str, Any]) -> Any:
    """Draw pruning in one shot."""
    config = content["config"].get("run", content["config"])
    title = f"Pruned in one shot, {name_of(config)}"
    return figures.plot_lomp(content["rows"], content["dense"], content["limits"], title=title)


def of_growth(content: dict[str, Any]) -> Any:
    """Draw how costs grow."""
    return figures.plot_growth(content["sweeps"])


def of_scaling(content: dict[str, Any]) -> Any:
    """Draw how work scales over a mesh."""
    return figures.plot_scaling(content["results"], cores=content["environment"]["cores"])


def of_rules(content: dict[str, Any]) -> Any:
    """Draw the error of each quadrature rule, in the default mode and for |λ|."""
    errors = {
        name: np.array(case["abs"]["full"]["rms"]).T for name, case in content["cases"].items()
    }
    return figures.plot_rule_errors(errors, content["depths"], content["rules"], level=0.02)


def drawings() -> Iterator[tuple[Path, str, Callable[[dict[str, Any]], Any]]]:
    """List the results with the figure that each makes, by the name of its file."""
    for path in sorted(RESULTS.rglob("depth.json")):
        yield path, "depth", of_depth
    yield RESULTS / "bound_gap" / "result.json", "bound_gap", of_gap
    for data in ("digits", "cifar10"):
        yield RESULTS / f"sensitivity-{data}" / "result.json", "sensitivity", of_knobs
        yield RESULTS / f"key_factors_{data}" / "result.json", "factors", of_factors
        yield RESULTS / f"key_factors_{data}" / "result.json", "rounds", of_rounds
    yield RESULTS / "fc5-digits" / "lomp.json", "lomp", of_lomp
    yield BENCHMARKS / "cost_growth.json", "cost_growth", of_growth
    yield BENCHMARKS / "mesh_scaling.json", "mesh_scaling", of_scaling
    yield BENCHMARKS / "kink_at_zero.json", "kink_at_zero", of_rules


def side_by_side() -> None:
    """Draw both sides of all networks in one figure."""
    figure = plotting.plot_two_sides(sides_table.rows(sides_table.read(RESULTS)))
    for kind in ("png", "svg"):
        plotting.save(figure, RESULTS / f"two_sides.{kind}")


def main(config: Config) -> None:
    """Draw the runs that are named, or everything that is committed."""
    for folder in config.folders:
        of_run(folder)
    if config.folders:
        return
    folders = [RESULTS / name for name in NETWORKS]
    for folder in folders:
        if (folder / SPECTRA["measure"]).exists():
            of_run(folder)
    side_by_side()
    for path, name, draw in drawings():
        plotting.save(draw(read_json(path)), path.with_name(f"{name}.png"))
        console.print(f"drew {path.with_name(name)}.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
