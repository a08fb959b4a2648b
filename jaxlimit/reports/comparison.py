"""Two studies side by side."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxlimit.reports import contents, figures
from jaxlimit.reports._markdown import escape
from jaxlimit.studies import Study
from jaxlimit.studies.summary import percent

_LIMITS = {
    "no mask keeps fewer": ("certified", "ratio"),
    "smallest mask found": ("found", "ratio"),
    "magnitude, measured": ("measured", "by_loss"),
    "magnitude, by accuracy": ("measured", "by_accuracy"),
    "predicted ρ*, published": ("prediction", "published"),
    "safe on unseen data": ("guaranteed", "ratio"),
}
_SHOWN = ("dim", "epsilon.value", "dense.loss", "dense.accuracy", "about.num_examples")
_PASSED = ("about.date", "about.command", "settings.quiet")


class Comparison(NamedTuple):
    """Two studies side by side; print it, or draw both sweeps with `plot`.

    Attributes:
        names: names of the two studies.
        settings: by name, the settings that differ.
        limits: by name, both limits as texts with their intervals.
        results: both contents, from `reports.content`.
    """

    names: tuple[str, str]
    settings: dict[str, tuple[Any, Any]]
    limits: dict[str, tuple[str, str]]
    results: tuple[dict[str, Any], dict[str, Any]]

    def __str__(self) -> str:
        """Lay both out as a table in Markdown."""
        rows = [(name, *pair) for name, pair in self.limits.items()]
        rows += [(name, *map(_show, pair)) for name, pair in self.settings.items()]
        head, *body = [map(escape, row) for row in (("", *self.names), *rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * 3, *body))

    __repr__ = __str__

    def plot(self) -> Any:
        """Draw loss and accuracy of both against the weights kept, in one figure."""
        rows = {}
        for name, result in zip(self.names, self.results, strict=True):
            sweep = result["sweep"]
            blank = [float("nan") if x is None else x for x in sweep["accuracies"]]
            rows[name] = (sweep["ratios"], sweep["losses"], blank)
        return figures.curves(rows)


def compare(a: Any, b: Any) -> Comparison:
    """Compare two studies: settings that differ, and the limits with their intervals.

    Args:
        a: a `Study`, the folder of a saved one, or its content, as `read` returns it.
        b: the other one.

    Returns:
        A `Comparison`.

    Raises:
        FileNotFoundError: if a folder is not that of a saved study.
        ValueError: if its result is damaged or of another version.
    """
    results = tuple(x if isinstance(x, dict) else _content(x) for x in (a, b))
    names = tuple(_name(x, letter) for x, letter in zip((a, b), "AB", strict=True))
    if names[0] == names[1]:
        names = (f"{names[0]} (A)", f"{names[1]} (B)")
    flat = [_flat({key: result[key] for key in ("about", "settings", "dim", "epsilon", "dense")})
            for result in results]  # fmt: skip
    keys = [key for key in flat[0] | flat[1] if key not in _PASSED]
    settings = {
        key: (flat[0].get(key), flat[1].get(key))
        for key in keys
        if key in _SHOWN or flat[0].get(key) != flat[1].get(key)
    }
    limits = {name: (_limit(results[0], path), _limit(results[1], path))
              for name, path in _LIMITS.items()}  # fmt: skip
    return Comparison(names, settings, limits, results)  # type: ignore[arg-type]


def _content(study: Any) -> dict[str, Any]:
    return contents.content(study) if isinstance(study, Study) else contents.read(study)


def _name(study: Any, letter: str) -> str:
    return letter if isinstance(study, Study | dict) else Path(study).resolve().name


def _limit(result: dict[str, Any], path: tuple[str, str]) -> str:
    value = (result.get(path[0]) or {}).get(path[1])
    if isinstance(value, dict):
        span = f"[{percent(value['lower'])}, {percent(value['upper'])}]"
        return f"{percent(value['ratio'])} {span}"
    return percent(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        below = isinstance(value, dict)
        leaves |= _flat(value, f"{prefix}{name}.") if below else {prefix + name: value}
    return leaves


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else "-" if value is None else str(value)
