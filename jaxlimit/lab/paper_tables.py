"""The paper's two tables from the results of runs: what theory says, and what pruning finds."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlimit import distributed, plotting
from jaxlimit._core import files
from jaxlimit.lab import figures
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.figures import MeanAndDeviation, TableRow
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.results import Epochs, RunResult, read_result
from jaxlimit.lab.rows import PAIR, PUBLISHED, SETTINGS, Row
from jaxlimit.lab.settings import RunConfig


def collect(row: Row, runs: Path, results: Path) -> None:
    """Keep a thinned copy of every result of a row made with its setting, whatever the depth."""
    for setting in row.settings:
        for path, result in read_results(runs, row, setting).items():
            kept = results / path.relative_to(runs)
            if path != kept:
                write_json(kept, result.thinned())


def read_results(folder: Path, row: Row, setting: str) -> dict[Path, RunResult]:
    """Read the results of one setting of a row, and say which are left out and why."""
    results = {}
    for path in sorted((folder / f"{row.name}-{setting}").glob("seed-*/result.json")):
        try:
            results[path] = read_of_row(path, row, setting)
        except (KeyError, TypeError, ValueError) as error:
            console.print(f"left out {path}: {type(error).__name__}: {error}")
    return results


def read_of_row(path: Path, row: Row, setting: str) -> RunResult:
    """Read a result, and refuse one of another training, or of another limit of the same network.

    How deep its Lanczos recurrences went is free: the notes tell it.
    """
    result = read_result(path)
    made, asked = decisive(result.config), decisive(row.config(setting, result.seed))
    other = [f"{k} {made.get(k)!r}, not {asked.get(k)!r}" for k in made | asked
             if made.get(k) != asked.get(k)]  # fmt: skip
    if other:
        raise ValueError(f"made with another setting: {'; '.join(other)}")
    return result


def decisive(config: RunConfig) -> dict[str, Any]:
    """Select what decides what is predicted and measured, of any one seed."""
    names = ("hessian_images", "num_ratios", "smallest_ratio", "accuracy_tolerance")
    network = config.network()
    return network.pop("training") | network | {name: getattr(config, name) for name in names}


NONE = "not in the paper"

QUANTITIES: dict[str, Callable[[RunResult], float]] = {
    "theory": lambda r: r.prediction.ratio,
    "measured": lambda r: r.measured.by_loss,
    "gap": lambda r: r.gap,
    "theory, λ < 0 flat": lambda r: r.clipped.ratio,
    "theory, corrected": lambda r: r.corrected.ratio,
    "measured, with l1": lambda r: r.measured.by_loss_with_l1,
    "measured, by accuracy": lambda r: r.measured.by_accuracy,
    "baseline: support": lambda r: r.baseline.support,
    "baseline: Taylor": lambda r: r.baseline.taylor,
    "distance from the minimum": lambda r: r.distance_from_minimum.relative,
    "test accuracy": lambda r: r.dense.accuracy,
    "test accuracy, pruned": lambda r: r.pruned_accuracy,
}

SPEEDS = {
    "images_per_second": "{:,.0f} images a second in training",
    "training_share_of_peak": "{:.2g} of the device's peak",
    "products_per_second": "{:,.3g} products a second",
    "products_share_of_peak": "{:.2g} of the device's peak",
}


class Cell(NamedTuple):
    """The results of one setting of a row.

    Attributes:
        row: what the paper has.
        setting: short, paper, annealed or smoke.
        results: of each seed.
        paths: of the files, beside the tables.
    """

    row: Row
    setting: str
    results: list[RunResult]
    paths: list[str]

    def value(self, quantity: str) -> MeanAndDeviation | None:
        """Return the mean over the seeds in per cent, None if there is no run."""
        if not self.results:
            return None
        values = np.array([100 * float(QUANTITIES[quantity](r)) for r in self.results])
        return MeanAndDeviation(values.mean(), values.std(ddof=1) if len(values) > 1 else None)

    def published(self, quantity: str) -> MeanAndDeviation | None:
        """Return what the paper has, None if it lacks the network."""
        found = self.row.published.get(quantity)
        return found and MeanAndDeviation(*found)


def read_cell(row: Row, setting: str, results: Path) -> Cell:
    """Read what has been collected and is still of the row's setting."""
    found = read_results(results, row, setting)
    paths = [str(path.relative_to(results)) for path in found]
    return Cell(row, setting, list(found.values()), paths)


def shown(value: tuple[float, float | None] | None, without: str = "not run yet") -> str:
    """Show mean ± standard deviation, each at three digits; `without` where there is none."""
    if value is None:
        return without
    mean, deviation = value
    return f"{mean:.3g}" if deviation is None else f"{mean:.3g} ± {deviation:.2g}"


def markdown(cells: list[Cell]) -> str:
    """Lay out the tables."""
    full = [cell for cell in cells if cell.setting != "smoke"]
    baselines = list(QUANTITIES)[3:]
    return "\n\n".join(
        [
            "# The paper's tables",
            "Per cent of the weights that are kept; mean ± standard deviation over the seeds, no "
            "deviation for a single one. Written by `experiments/tables.py`.",
            "## Theory / measured",
            overview(full),
            "The paper states one setting. `short` is a run of a few epochs on a CPU, `annealed` "
            "goes to a minimum of the penalised loss, `paper` is trained as the paper trains. A "
            "single run has the interval of its prediction in brackets.",
            "## Pruning ratios",
            table(
                ["network", "setting", "theory, paper", "theory, here", "measured, paper",
                 "measured, here", "theory - measured", "distance from the minimum, % of ‖w‖",
                 "results, by seed"],
                [[*labels(cell), shown(cell.published("theory"), NONE), shown(cell.value("theory")),
                  shown(cell.published("measured"), NONE), shown(cell.value("measured")),
                  difference(cell), shown(cell.value("distance from the minimum")), links(cell)]
                 for cell in full],
            ),
            "## Δ, the gap between the bounds",
            table(
                ["network", "setting", "Δ, paper", "Δ, here"],
                [[*labels(cell), shown(cell.published("gap"), NONE), shown(cell.value("gap"))]
                 for cell in full],
            ),
            "## What they are held against",
            table(["network", "setting", *baselines],
                  [[*labels(cell), *(shown(cell.value(q)) for q in baselines)]
                   for cell in full if cell.results]),
            *training_section(full),
            *notes(full),
            "## Smoke runs",
            "One epoch on a few images: they show that the commands run, and no number of them "
            "says anything.",
            smoke_table([cell for cell in cells if cell.setting == "smoke" and cell.results]),
        ]
    ) + "\n"  # fmt: skip


def overview(cells: list[Cell]) -> str:
    """Lay out one line a network, as the paper's tables do: theory / measured of each setting."""
    settings = [name for name in SETTINGS if any(cell.setting == name for cell in cells)]
    rows = {cell.row.name: cell for cell in cells}
    lines = []
    for name, one in rows.items():
        of_row = {cell.setting: cell for cell in cells if cell.row.name == name}
        line = [name, pair(map(one.published, PAIR), NONE)]
        for setting in settings:
            cell = of_row.get(setting)
            line.append(found(cell) if cell else "-")
        lines.append(line)
    return table(["network", "published", *settings], lines)


def found(cell: Cell) -> str:
    """Show what a cell found, with the interval of the prediction where there is a single run."""
    if len(cell.results) != 1:
        return pair(map(cell.value, PAIR), "not run yet")
    theory, measured = (shown(cell.value(name)) for name in PAIR)
    prediction = cell.results[0].prediction
    return f"{theory} [{100 * prediction.lower:.2g}, {100 * prediction.upper:.2g}] / {measured}"


def pair(values: Iterable[MeanAndDeviation | None], without: str) -> str:
    """Show theory and measurement in one cell."""
    found = [value for value in values if value is not None]
    return " / ".join(map(shown, found)) or without


def smoke_table(cells: list[Cell]) -> str:
    """Lay out the smoke runs, by the first seed of each."""
    firsts = [cell.results[0] for cell in cells]
    return table(
        ["network", "training images", *PUBLISHED, "seconds", "results, by seed"],
        [
            [cell.row.name, str(first.config.max_images),
             *(shown(cell.value(q)) for q in PUBLISHED),
             f"{first.seconds['total']:.0f}", links(cell)]
            for cell, first in zip(cells, firsts, strict=True)
        ],
    )  # fmt: skip


def table(header: list[str], lines: list[list[str]]) -> str:
    """Lay out one Markdown table, line by line."""
    return markdown_table({name: [line[i] for line in lines] for i, name in enumerate(header)})


def labels(cell: Cell) -> tuple[str, str]:
    """Name a cell and tell how it was trained."""
    config = cell.row.config(cell.setting, 0)
    c = config.training
    images = f"{config.max_images:,} images, " if config.max_images else ""
    trained = f"{images}{c.epochs} epochs, {c.learning_rate:g} {c.schedule}, l1 {c.l1:g}"
    return cell.row.name, f"{cell.setting} ({trained}{', augmented' if c.augment else ''})"


def difference(cell: Cell) -> str:
    """Show how far the prediction is from the measurement, in points and as a factor."""
    theory, measured = cell.value("theory"), cell.value("measured")
    if theory is None or measured is None:
        return "not run yet"
    return f"{theory.mean - measured.mean:+.2g} ({theory.mean / measured.mean:.2f} times)"


def links(cell: Cell) -> str:
    """Link the results that a cell comes from."""
    seeds = (f"[{r.seed}]({p})" for r, p in zip(cell.results, cell.paths, strict=True))
    return ", ".join(seeds) or "not run yet"


def notes(cells: list[Cell]) -> Iterator[str]:
    """Say of each run what makes its numbers uncertain, as the run itself has it."""
    for cell in cells:
        for result in cell.results:
            yield note(f"{cell.row.name}, {cell.setting}", result)


def note(name: str, result: RunResult) -> str:
    """Say of one run how it was made and what makes it uncertain."""
    low, high = 100 * result.prediction.lower, 100 * result.prediction.upper
    made = [f"theory between {low:.3g} and {high:.3g}", f"Lanczos depth {result.depth}",
            f"{result.hessian_images:,} images in H"]  # fmt: skip
    for quantity, words in SPEEDS.items():
        if quantity in result.speed:
            made.append(words.format(result.speed[quantity]))
    reasons = [f"- {reason}" for reason in result.reasons] or ["- nothing to note"]
    return "\n".join([f"{name}, seed {result.seed} ({', '.join(made)}):", "", *reasons])


def as_csv(cells: list[Cell]) -> str:
    """Lay out one line a cell, all of it in per cent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ours = [f"{q}, {part}" for q in QUANTITIES for part in ("mean", "std")]
    paper = [f"{q}, paper, {part}" for q in PUBLISHED for part in ("mean", "std")]
    writer.writerow(["network", "setting", "seeds", *paper, *ours, "results"])
    for cell in cells:
        found = [*map(cell.published, PUBLISHED), *map(cell.value, QUANTITIES)]
        numbers = [value or MeanAndDeviation(None, None) for value in found]
        flat = ["" if x is None else f"{x:.6g}" for value in numbers for x in value]
        writer.writerow([cell.row.name, cell.setting, len(cell.results), *flat,
                         " ".join(cell.paths) or "not run yet"])  # fmt: skip
    return file.getvalue()


def tabulate(rows: Sequence[Row], runs: Path, results: Path) -> list[Cell]:
    """Collect what there is and write the tables as Markdown, CSV and a figure.

    The first of several processes does it, once all have come here; the others return no cells.

    Args:
        rows: of the tables.
        runs: where the runs are.
        results: where the tables and the results that they come from go.
    """
    distributed.barrier("results")
    if not distributed.is_first():
        return []
    for row in rows:
        collect(row, runs, results)
    cells = [read_cell(row, setting, results) for row in rows for setting in row.settings]
    results.mkdir(parents=True, exist_ok=True)
    files.write_text(results / "table.md", markdown(cells))
    files.write_text(results / "table.csv", as_csv(cells))
    drawn = [TableRow(row.name, pairs([c for c in cells if c.row is row])) for row in rows]
    plotting.save(figures.plot_tables(drawn), results / "table.png")
    if trained := trainings(cells):
        plotting.save(figures.plot_training(trained), results / "training.png")
    return cells


def trainings(cells: list[Cell]) -> dict[str, Epochs]:
    """Take the training of every run that kept it, by its name."""
    return {
        f"{cell.row.name}, {cell.setting}, seed {result.seed}": result.training
        for cell in cells
        if cell.setting != "smoke"
        for result in cell.results
        if result.training
    }


def training_section(cells: list[Cell]) -> list[str]:
    """Point to the figure of the trainings, if there is one."""
    return ["## Training", "![Loss by epoch](training.png)"] if trainings(cells) else []


def pairs(cells: list[Cell]) -> dict[str, tuple]:
    """Pair theory and measurement of one row, by where they come from."""
    published = {"published": tuple(map(cells[0].published, PAIR))}
    return (published if cells[0].row.published else {}) | {
        f"here, {cell.setting} setting": tuple(map(cell.value, PAIR))
        for cell in cells
        if cell.setting != "smoke"
    }
