"""The tables of docs/questions.md, from the results of the experiments on the open questions."""

from pathlib import Path
from typing import Any

from jaxlimit.lab.content import read_json
from jaxlimit.lab.markdown import markdown_table

PAGE = "docs/questions.md"
FOLDER = "experiments/results"
EXPERIMENTS = {
    "layers": "adaptive_ratio",
    "rounds": "iterative_pruning",
    "penalties": "regularisation",
    "ways": "way_to_prune",
}


def told(root: Path, name: str) -> str:
    """Show the table and the sentence of an experiment, and those of its other networks."""
    folders = sorted((root / FOLDER).glob(f"{name}*"))
    results = {
        f.name: read_json(f / "result.json") for f in folders if (f / "result.json").exists()
    }
    if not results:
        return f"Not run yet in this version: `python experiments/{name}.py`."
    parts = []
    for result in results.values():
        run = result["config"]["run"]
        parts.append(f"{run['model'].upper()} on {run['dataset']}:\n\n{result['table']}\n\n"
                     f"{result['sentence']}")  # fmt: skip
    return "\n\n".join(parts)


def published(root: Path) -> str:
    """Set what is published beside ours as theirs and ours as it should be, a row a network."""
    path = root / FOLDER / "as_published" / "as_published.json"
    if not path.exists():
        return "Not run yet in this version: `python experiments/as_published.py`."
    result = read_json(path)
    rows = [
        _row(name, row, result["rows"][name])
        for name, row in result["beside"].items()
        if row["published"] is not None and name.endswith("paper")
    ]
    if not rows:
        return "Not run yet in this version."
    table = markdown_table({head: [row[head] for row in rows] for head in rows[0]})
    seeds = result["tables"].get("seeds")
    return table if seeds is None else f"{table}\n\nFC5 on digits, trained anew:\n\n{seeds}"


def _row(name: str, row: dict[str, Any], readings: dict[str, dict[str, float]]) -> dict[str, str]:
    def pair(what: str) -> str:
        mean, spread = row["published"][what]
        return f"{mean} ± {spread} %"

    theirs = ", ".join(f"{row['theory'][depth]:.1%}" for depth in readings)
    above = row["measured"]["theirs"]
    return {
        "": name,
        "theory: published": pair("theory"),
        f"read as theirs ({', '.join(readings)} steps)": theirs,
        "ours": f"{row['theory']['ours']:.2%}",
        "what moves it most": "; ".join(_most(read) for read in readings.values()),
        "actual: published": pair("measured"),
        "above dense accuracy": "nowhere" if above is None else f"{above:.2%}",
        "within ε": f"{row['measured']['ours']:.2%}",
        "Δ: published": pair("gap"),
        "each density by its own sum": f"{row['gap']['theirs']:.2%}",
        "as stated": f"{row['gap']['ours']:.2%}",
    }


def _most(reading: dict[str, float]) -> str:
    """Name the choice that moves the prediction most, and by how much."""
    labels, values = list(reading), list(reading.values())
    moves = {labels[i]: values[i] - values[i - 1] for i in range(1, len(values))}
    label = max(moves, key=lambda name: abs(moves[name]))
    return f"{label}, {moves[label]:+.2%}"


def blocks(root: Path) -> dict[str, dict[str, str]]:
    """Return what is written between the markers of the page, by page and marker."""
    tables = {block: told(root, name) for block, name in EXPERIMENTS.items()}
    return {PAGE: tables | {"published": published(root)}}
