"""Both sides of the limit of every network that was run, as rows of a table and of a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlimit.lab import report
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.results import FILE, RunResult, TwoSides, read_result
from jaxlimit.plotting.sides import SIDES

NAMES = {
    "fc5-digits": "FC5, digits",
    "fc12-digits": "FC12, digits",
    "cnn-digits": "CNN by Adam without l1, digits",
    "resnet18-digits": "ResNet18, digits",
    "fc5-cifar10-annealed": "FC5, CIFAR-10, annealed",
    "fc12-cifar10-annealed": "FC12, CIFAR-10, annealed",
    "fc5-cifar10-paper": "FC5, CIFAR-10, paper's setting",
    "fc12-cifar10-paper": "FC12, CIFAR-10, paper's setting",
}
WAYS = {"found": "smallest mask", "magnitude": "magnitude", "by_layer": "`limits.by_layer`"}


def read(folder: Path) -> dict[str, list[RunResult]]:
    """Read the results of each network, a seed each, those with a search for a mask first of all.

    Args:
        folder: with the results of `two_sides`, of `tables`, and one of each network's own.
    """
    networks = {}
    for name in NAMES:
        for place in (folder / "two_sides", folder / "tables"):
            paths = sorted((place / name).glob(f"seed-*/{FILE}"))
            found = [result for path in paths if (result := read_result(path)).two_sides]
            if found:
                networks[name] = found
                break
        else:
            if (folder / name / FILE).exists():
                networks[name] = [read_result(folder / name)]
    return networks


def rows(networks: dict[str, list[RunResult]]) -> dict[str, dict[str, float | None]]:
    """Take what the figure shows of each network, the means over its seeds."""
    shown = {}
    for name, results in networks.items():
        sides = [report.sides_of(result) for result in results]
        shown[NAMES[name]] = {key: _mean([one[key] for one in sides]) for key in SIDES}
    return shown


def table(networks: dict[str, list[RunResult]], columns: Sequence[str] = ()) -> str:
    """Lay out a row a network: means over the seeds, with the standard deviation of several."""
    lines = [_row(NAMES[name], results) for name, results in networks.items()]
    heads = columns or list(lines[0])
    return markdown_table({head: [line[head] for line in lines] for head in heads})


def peers(networks: Sequence[dict[str, Any]]) -> str:
    """Lay out how many weights each way of choosing keeps, a row a way and a column a seed."""
    ways = list(networks[0]["kept"])
    columns = {"mask": [*ways, "no mask, certified"]}
    for one in networks:
        counts = [*(one["kept"].get(way) for way in ways), one["certified"]]
        cells = ["-" if count is None else f"{count / one['dim']:.3%}" for count in counts]
        columns[f"seed {one['seed']}"] = cells
    return markdown_table(columns)


def layers(results: list[RunResult]) -> str:
    """Lay out what the masks of the first seed keep of each layer, and what its limit asks for."""
    sides = results[0].two_sides
    if sides is None or not sides.layers:
        return "Not run yet in this version."
    sizes = sides.layers["all"]
    columns = {"layer": list(sizes), "weights": [f"{size:,}" for size in sizes.values()]}
    for way, words in WAYS.items():
        if way in sides.layers:
            kept = sides.layers[way]
            columns[words] = [f"{kept[n]:,} ({kept[n] / size:.2%})" for n, size in sizes.items()]
    return markdown_table(columns)


def _row(name: str, results: list[RunResult]) -> dict[str, str]:
    sides = [result.two_sides for result in results]
    found = [one for one in sides if one is not None]
    magnitude = [report.sides_of(result)["magnitude"] for result in results]
    seeds = f"{len(results)} seed{'s' if len(results) > 1 else ''}"
    return {
        "network": f"{name} ({seeds})",
        "no mask keeps less": _percent([one.certificate for one in found]),
        "a mask that keeps": _found(found),
        "found / certified": _ratio(found),
        "magnitude": _percent(magnitude),
        "published ρ\\*": _percent([result.prediction.ratio for result in results]),
        "corrected": _percent([result.corrected.ratio for result in results]),
        "of ε: linear, quadratic, remainder": _shares(found),
        "test accuracy, dense and found": _accuracy(results),
    }


def _found(sides: list[TwoSides]) -> str:
    ways = ", ".join(dict.fromkeys(one.method for one in sides))
    return f"**{_percent([one.found for one in sides])}** ({ways})" if sides else "-"


def _ratio(sides: list[TwoSides]) -> str:
    ratios = [one.found / one.certificate for one in sides if one.certificate]
    return ", ".join(f"{ratio:.3g}" for ratio in ratios) or "-"


def _shares(sides: list[TwoSides]) -> str:
    known = [one.shares for one in sides if one.shares]
    if not known:
        return "-"
    return ", ".join(f"{np.mean([one[name] for one in known]):.0%}" for name in known[0])


def _accuracy(results: list[RunResult]) -> str:
    dense = f"{np.mean([result.dense.accuracy for result in results]):.1%}"
    found = [r.two_sides.accuracy for r in results if r.two_sides and r.two_sides.accuracy]
    return f"{dense}, {np.mean(found):.1%}" if found else dense


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _percent(values: list[float | None]) -> str:
    known = 100 * np.array([value for value in values if value is not None])
    if not known.size:
        return "-"
    spread = f" ± {known.std(ddof=1):.2g}" if known.size > 1 else ""
    return f"{known.mean():.3g}{spread} %"
