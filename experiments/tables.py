"""Make the paper's two tables: what theory says and what pruning finds, row by row.

python experiments/tables.py --rows fc5 fc12 --seeds 0 1 2    # train, predict, prune, tabulate
python experiments/tables.py --collect                        # only tabulate what is there

A row is a file of experiments/rows/. A run is one of pruning_limit.py, in runs/ROW-SETTING/seed-N,
and goes on from there when asked for again. Its result.json is kept, thinned, beside the tables.
"""

import csv
import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pruning_limit
import pruning_report
import tyro

from jaxlimit import distributed, plotting
from jaxlimit.lab import figures
from jaxlimit.lab.figures import MeanAndDeviation, TableRow
from jaxlimit.lab.reporting import build, console, markdown_table, write_json

HERE = Path(__file__).parent
SETTINGS = ("paper", "annealed", "smoke")
PAIR = ("theory", "measured")
PUBLISHED = (*PAIR, "gap")


@dataclasses.dataclass(frozen=True)
class Config:
    """Run rows of the paper's tables, and tabulate all that have been run."""

    rows: tuple[str, ...] = ()
    """Names of rows, or how they begin; all by default."""
    settings: tuple[Literal["paper", "annealed", "smoke"], ...] = ("paper", "annealed")
    seeds: tuple[int, ...] = (0,)
    collect: bool = False
    """Run nothing."""
    distributed: bool = False
    """As of `pruning_limit.py`; the first run that fails then ends the job."""
    data_dir: Path | None = None
    """TFDS data directory; else TFDS_DATA_DIR, else TFDS's own default."""
    runs: Path = Path("runs")
    """Where the runs are, with checkpoints and spectra."""
    results: Path = HERE / "results" / "tables"
    """Where the tables and the results that they come from go."""


class Row(NamedTuple):
    """A row of the paper's tables, as its file has it.

    Attributes:
        name: network and data set.
        place: in the tables.
        published: theory, measured and gap, in per cent: mean and standard deviation.
        common: flags of `pruning_limit.Config` that all settings share.
        settings: what each setting adds; its seed-N what one seed adds to that.
    """

    name: str
    place: int
    published: dict[str, tuple[float, float]]
    common: dict[str, Any]
    settings: dict[str, dict[str, Any]]

    def config(self, setting: str, seed: int, **more: Any) -> pruning_limit.Config:
        """Build what `pruning_limit.run` is told."""
        values = dict(self.settings[setting])
        of_seed = {k: values.pop(k) for k in list(values) if re.fullmatch(r"seed-\d+", k)}
        values = self.common | values | of_seed.get(f"seed-{seed}", {}) | more
        return build(pruning_limit.Config, values, f"{self.name}, {setting}")


def read_row(path: Path) -> Row:
    """Read a row and check every setting of it, with what its seeds add and without."""
    try:
        common = tomllib.loads(path.read_text())
        place, published = common.pop("place"), common.pop("published")
        published = {name: published[name] for name in PUBLISHED}
        row = Row(path.stem, place, published, common, {s: common.pop(s) for s in SETTINGS})
        for setting, values in row.settings.items():
            own = re.findall(r"seed-(\d+)", " ".join(values))
            for seed in (-1, *map(int, own)):  # -1 never has its own
                row.config(setting, seed)
    except (KeyError, TypeError, ValueError) as error:
        error.add_note(f"in {path}")
        raise
    return row


def read_rows(folder: Path = HERE / "rows") -> list[Row]:
    """Read all rows, in the order of the tables."""
    return sorted(map(read_row, folder.glob("*.toml")), key=lambda row: row.place)


def select(rows: list[Row], names: tuple[str, ...]) -> list[Row]:
    """Select the rows whose names begin with one of `names`; all if there are none."""
    for name in names:
        if not any(row.name.startswith(name) for row in rows):
            known = ", ".join(row.name for row in rows)
            raise ValueError(f"rows must be names of rows or their beginnings, one of {known}; "
                             f"got {name!r}")  # fmt: skip
    return [row for row in rows if row.name.startswith(names or ("",))]


def run(row: Row, setting: str, seed: int, config: Config) -> None:
    """Run one seed of one setting of a row, unless its result is there already."""
    output = config.runs / f"{row.name}-{setting}"
    wanted = row.config(setting, seed, output=output, data_dir=config.data_dir,
                        distributed=config.distributed)  # fmt: skip
    folder = output / f"seed-{seed}"
    if pruning_limit.known(folder, wanted):
        console.print(f"{folder / 'result.json'} is there already")
    else:
        pruning_report.show(pruning_limit.run(wanted, seed), folder)


def collect(row: Row, config: Config) -> None:
    """Keep a thinned copy of every result of a row made with its setting, whatever the depth."""
    for setting in SETTINGS:
        for path, result in read_results(config.runs, row, setting).items():
            write_json(config.results / path.relative_to(config.runs), thinned(result))


def read_results(folder: Path, row: Row, setting: str) -> dict[Path, dict[str, Any]]:
    """Read the results of one setting of a row, and say which are left out and why."""
    results = {}
    for path in sorted((folder / f"{row.name}-{setting}").glob("seed-*/result.json")):
        try:
            results[path] = read_result(path, row, setting)
        except (KeyError, TypeError, ValueError) as error:
            console.print(f"left out {path}: {type(error).__name__}: {error}")
    return results


def read_result(path: Path, row: Row, setting: str) -> dict[str, Any]:
    """Read a result, and refuse one of another training, or of another limit of the same network.

    How deep its Lanczos recurrences went is free: the notes tell it.
    """
    result = pruning_limit.read_result(path.parent)
    for quantity in QUANTITIES.values():
        float(quantity(result))
    note("", thinned(result))  # reads what else the tables take
    float(result["seconds"]["total"])
    made = decisive(build(pruning_limit.Config, result["config"], "its config"))
    asked = decisive(row.config(setting, result["seed"]))
    other = [f"{k} {v!r}, not {asked[k]!r}" for k, v in made.items() if v != asked[k]]
    if other:
        raise ValueError(f"made with another setting: {'; '.join(other)}")
    return result


def decisive(config: pruning_limit.Config) -> dict[str, Any]:
    """Select what decides what is predicted and measured, of any one seed."""
    names = ("hessian_images", "num_ratios", "smallest_ratio", "accuracy_tolerance")
    return config.network() | {name: getattr(config, name) for name in names}


def thinned(result: dict[str, Any], num_points: int = 40) -> dict[str, Any]:
    """Keep at most so many points of the sweeps."""

    def thin(values: list) -> list:
        chosen = np.linspace(0, len(values) - 1, min(num_points, len(values))).round().astype(int)
        return [values[i] for i in chosen]

    sweeps = {s: {k: thin(v) for k, v in sweep.items()} for s, sweep in result["sweep"].items()}
    return result | {"sweep": sweeps}


QUANTITIES = {
    "theory": lambda r: r["prediction"]["ratio"],
    "measured": lambda r: r["measured"]["by_loss"],
    "gap": lambda r: r["gap"],
    "theory, λ < 0 flat": lambda r: r["clipped"]["ratio"],
    "theory, corrected": lambda r: r["corrected"]["ratio"],
    "measured, with l1": lambda r: r["measured"]["by_loss_with_l1"],
    "measured, by accuracy": lambda r: r["measured"]["by_accuracy"],
    "baseline: support": lambda r: r["baseline"]["support"],
    "baseline: Taylor": lambda r: r["baseline"]["taylor"],
    "distance from the minimum": lambda r: r["distance_from_minimum"]["relative"],
    "test accuracy": lambda r: r["dense"]["accuracy"],
    "test accuracy, pruned": lambda r: r["pruned_accuracy"],
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
        setting: paper, annealed or smoke.
        results: of each seed, from its result.json.
        paths: of the files, beside the tables.
    """

    row: Row
    setting: str
    results: list[dict[str, Any]]
    paths: list[str]

    def value(self, quantity: str) -> MeanAndDeviation | None:
        """Return the mean over the seeds in per cent, None if there is no run."""
        if not self.results:
            return None
        values = np.array([100 * float(QUANTITIES[quantity](r)) for r in self.results])
        return MeanAndDeviation(values.mean(), values.std(ddof=1) if len(values) > 1 else None)

    def published(self, quantity: str) -> MeanAndDeviation:
        """Return what the paper has."""
        return MeanAndDeviation(*self.row.published[quantity])


def read_cell(row: Row, setting: str, config: Config) -> Cell:
    """Read what has been collected and is still of the row's setting."""
    results = read_results(config.results, row, setting)
    paths = [str(path.relative_to(config.results)) for path in results]
    return Cell(row, setting, list(results.values()), paths)


def shown(value: tuple[float, float | None] | None) -> str:
    """Show mean ± standard deviation, each at three digits."""
    if value is None:
        return "not run yet"
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
            "## Pruning ratios",
            table(
                ["network", "setting", "theory, paper", "theory, here", "measured, paper",
                 "measured, here", "theory - measured", "distance from the minimum, % of ‖w‖",
                 "results, by seed"],
                [[*labels(cell), shown(cell.published("theory")), shown(cell.value("theory")),
                  shown(cell.published("measured")), shown(cell.value("measured")),
                  difference(cell), shown(cell.value("distance from the minimum")), links(cell)]
                 for cell in full],
            ),
            "The paper states one setting; it stands beside both of ours.",
            "## Δ, the gap between the bounds",
            table(
                ["network", "setting", "Δ, paper", "Δ, here"],
                [[*labels(cell), shown(cell.published("gap")), shown(cell.value("gap"))]
                 for cell in full],
            ),
            "## What they are held against",
            table(["network", "setting", *baselines],
                  [[*labels(cell), *(shown(cell.value(q)) for q in baselines)]
                   for cell in full if cell.results]),
            *notes(full),
            "## Smoke runs",
            "One epoch on a few images: they show that the commands run, and no number of them "
            "says anything.",
            smoke_table([cell for cell in cells if cell.setting == "smoke" and cell.results]),
        ]
    ) + "\n"  # fmt: skip


def smoke_table(cells: list[Cell]) -> str:
    """Lay out the smoke runs, by the first seed of each."""
    firsts = [cell.results[0] for cell in cells]
    return table(
        ["network", "training images", *PUBLISHED, "seconds", "results, by seed"],
        [
            [cell.row.name, str(first["config"]["max_images"]),
             *(shown(cell.value(q)) for q in PUBLISHED),
             f"{first['seconds']['total']:.0f}", links(cell)]
            for cell, first in zip(cells, firsts, strict=True)
        ],
    )  # fmt: skip


def table(header: list[str], lines: list[list[str]]) -> str:
    """Lay out one Markdown table, line by line."""
    return markdown_table({name: [line[i] for line in lines] for i, name in enumerate(header)})


def labels(cell: Cell) -> tuple[str, str]:
    """Name a cell and tell how it was trained."""
    c = cell.row.config(cell.setting, 0)
    trained = f"{c.epochs} epochs, {c.learning_rate:g} {c.schedule}, l1 {c.l1:g}"
    return cell.row.name, f"{cell.setting} ({trained}{', augmented' if c.augment else ''})"


def difference(cell: Cell) -> str:
    """Show how far the prediction is from the measurement, in points and as a factor."""
    theory, measured = cell.value("theory"), cell.value("measured")
    if theory is None or measured is None:
        return "not run yet"
    return f"{theory.mean - measured.mean:+.2g} ({theory.mean / measured.mean:.2f} times)"


def links(cell: Cell) -> str:
    """Link the results that a cell comes from."""
    seeds = (f"[{r['seed']}]({p})" for r, p in zip(cell.results, cell.paths, strict=True))
    return ", ".join(seeds) or "not run yet"


def notes(cells: list[Cell]) -> Iterator[str]:
    """Say of each run what makes its numbers uncertain, as the run itself has it."""
    for cell in cells:
        for result in cell.results:
            yield note(f"{cell.row.name}, {cell.setting}", result)


def note(name: str, result: dict[str, Any]) -> str:
    """Say of one run how it was made and what makes it uncertain."""
    low, high = (100 * float(result["prediction"][end]) for end in ("lower", "upper"))
    made = [f"theory between {low:.3g} and {high:.3g}", f"Lanczos depth {result['depth']}",
            f"{result['hessian_images']:,} images in H"]  # fmt: skip
    for quantity, words in SPEEDS.items():
        if quantity in result.get("speed", {}):
            made.append(words.format(float(result["speed"][quantity])))
    reasons = [f"- {reason}" for reason in result["reasons"]] or ["- nothing to note"]
    return "\n".join([f"{name}, seed {result['seed']} ({', '.join(made)}):", "", *reasons])


def write_csv(path: Path, cells: list[Cell]) -> None:
    """Write one line a cell, all of it in per cent."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        ours = [f"{q}, {part}" for q in QUANTITIES for part in ("mean", "std")]
        paper = [f"{q}, paper, {part}" for q in PUBLISHED for part in ("mean", "std")]
        writer.writerow(["network", "setting", "seeds", *paper, *ours, "results"])
        for cell in cells:
            values = [cell.value(q) or MeanAndDeviation(None, None) for q in QUANTITIES]
            numbers = [*map(cell.published, PUBLISHED), *values]
            flat = ["" if x is None else f"{x:.6g}" for value in numbers for x in value]
            writer.writerow([cell.row.name, cell.setting, len(cell.results), *flat,
                             " ".join(cell.paths) or "not run yet"])  # fmt: skip


def tabulate(rows: list[Row], config: Config) -> list[Cell]:
    """Collect what there is and write the tables as Markdown, CSV and a figure.

    The first of several processes does it, once all have come here; the others return no cells.
    """
    distributed.barrier("results")
    if not distributed.is_first():
        return []
    for row in rows:
        collect(row, config)
    cells = [read_cell(row, setting, config) for row in rows for setting in SETTINGS]
    config.results.mkdir(parents=True, exist_ok=True)
    (config.results / "table.md").write_text(markdown(cells))
    write_csv(config.results / "table.csv", cells)
    drawn = [TableRow(row.name, pairs([c for c in cells if c.row is row])) for row in rows]
    plotting.save(figures.plot_tables(drawn), config.results / "table.png")
    return cells


def pairs(cells: list[Cell]) -> dict[str, tuple]:
    """Pair theory and measurement of one row, by where they come from."""
    return {"published": tuple(map(cells[0].published, PAIR))} | {
        f"here, {cell.setting} setting": tuple(map(cell.value, PAIR))
        for cell in cells
        if cell.setting != "smoke"
    }


def main(config: Config) -> None:
    """Run what is asked for, one complete result after the other, and tabulate after each."""
    rows, failures = read_rows(), []
    chosen = select(rows, config.rows)
    jobs = [(row, s, seed) for row in chosen for s in config.settings for seed in config.seeds]
    for row, setting, seed in [] if config.collect else jobs:
        name = f"{row.name}, {setting}, seed {seed}"
        console.rule(name)
        try:
            run(row, setting, seed, config)
        except Exception as error:  # whatever it is, the other rows still have to be run
            if config.distributed:  # the others may not have failed, and would wait for this one
                raise
            failures.append(f"{name}: {type(error).__name__}: {error}")
            console.print(f"FAILED {failures[-1]}")
            continue
        tabulate(rows, config)
    for cell in tabulate(rows, config):
        if cell.row in chosen and cell.setting in config.settings and cell.results:
            theory, measured = shown(cell.value("theory")), shown(cell.value("measured"))
            console.print(
                f"{cell.row.name}, {cell.setting}, {len(cell.results)} seeds: theory {theory} %, "
                f"measured {measured} %, difference {difference(cell)}"
            )
    console.print(f"written to {config.results}")
    if failures:
        sys.exit("\n".join([f"{len(failures)} of {len(jobs)} runs failed:", *failures]))


if __name__ == "__main__":
    pruning_limit.start(tyro.cli(Config), main)
