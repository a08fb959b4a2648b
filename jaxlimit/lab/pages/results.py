"""The tables of docs/results.md: one column a network, from the results of runs."""

from collections.abc import Callable
from pathlib import Path

from jaxlimit.lab import sides_table
from jaxlimit.lab.content import read_json
from jaxlimit.lab.markdown import comparison_table, markdown_table
from jaxlimit.lab.results import Limit, RunResult, read_result

PAGE = "docs/results.md"
BRIEF = ("network", "no mask keeps less", "a mask that keeps", "magnitude", "published ρ\\*")
FOLDER = "experiments/results"
BLOCKS = {
    "digits": ["fc5-digits", "fc12-digits", "resnet18-digits"],
    "cifar": [
        "fc5-cifar10-annealed",
        "fc5-cifar10-paper",
        "fc12-cifar10-annealed",
        "fc12-cifar10-paper",
    ],
}


def percent(value: float) -> str:
    """Show a ratio in per cent."""
    return f"{100 * value:.3g} %"


def interval(value: float, lower: float, upper: float) -> str:
    """Show a ratio with its interval in per cent."""
    return f"{percent(value)} [{percent(lower)}, {percent(upper)}]"


def limit(found: Limit) -> str:
    """Show a predicted limit with its interval."""
    return interval(found.ratio, found.lower, found.upper)


def trained(result: RunResult) -> str:
    """Say how a network was trained."""
    t = result.config.training
    augmented = ", augmented" if t.augment else ""
    return f"{t.epochs}, {t.learning_rate} {t.schedule}, {t.l1:g}{augmented}"


ROWS: dict[str, Callable[[RunResult], str]] = {
    "epochs, learning rate, l1": trained,
    "weights D; ε": lambda r: f"{r.dim:,}; {r.epsilon:.3g}",
    "Hessian images, Lanczos depth": lambda r: f"{r.hessian_images:,}, {r.depth}",
    "**predicted ρ\\***, 95 % interval": lambda r: f"**{limit(r.prediction)}**",
    "with λ < 0 taken for flat": lambda r: limit(r.clipped),
    "corrected threshold": lambda r: limit(r.corrected),
    "gap Δ": lambda r: interval(r.gap, *r.gap_interval),
    "**measured**, by training loss": lambda r: f"**{percent(r.measured.by_loss)}**",
    "with the l1 term in the loss": lambda r: percent(r.measured.by_loss_with_l1),
    "by test accuracy, 1 point tolerated": lambda r: percent(r.measured.by_accuracy),
    "baseline: support of the weights": lambda r: percent(r.baseline.support),
    "baseline: second-order Taylor": lambda r: percent(r.baseline.taylor),
    "distance from the minimum, of ‖w‖": lambda r: f"{r.distance_from_minimum.relative:.1e}",
    "test accuracy, dense and pruned": lambda r: f"{r.dense.accuracy:.1%}, {r.pruned_accuracy:.1%}",
}


def two_sides(root: Path) -> str:
    """Lay out both sides of the limit beside the heuristic and its prediction, a row a network."""
    networks = sides_table.read(root / FOLDER)
    networks = {name: results for name, results in networks.items() if results[0].two_sides}
    if not networks:
        return "Not run yet in this version; `make limit` shows both sides of FC5 on digits."
    return sides_table.table(networks, columns=BRIEF)


def layers(root: Path) -> str:
    """Lay out what the masks of FC5 keep of each layer."""
    networks = sides_table.read(root / FOLDER)
    return sides_table.layers(networks["fc5-digits"])


def written(root: Path, name: str) -> str:
    """Take the table and the sentence that an experiment wrote."""
    path = root / FOLDER / name / "result.json"
    if not path.exists():
        return "Not run yet in this version."
    content = read_json(path)
    return f"{content['table']}\n\n{content['sentence']}"


def peers(root: Path) -> str:
    """Lay out what other scores keep at equal ε, from the benchmark of the smallest mask."""
    path = root / "benchmarks/results/smallest_mask_digits.json"
    if not path.exists():
        return "Not run yet in this version."
    return sides_table.peers(read_json(path)["networks"])


WAYS = {
    "magnitude": "magnitude",
    "live magnitude": "dead weights first, then magnitude",
    "saliency": "saliency sᵢ = -wᵢgᵢ + ½wᵢ²Gᵢᵢ in one shot",
    "absolute saliency": "the same with absolute terms",
    "relaxed": "the relaxed point of the certificate, rounded",
    "greedy": "greedy on the quadratic over the live weights",
    "cautious greedy": "the same, gains of the gradient taken for nothing",
    "stepwise greedy": "greedy, the quadratic made anew at the masks on the way",
    "polished": "exchanges of weights at the best of these",
}


def candidates(root: Path) -> str:
    """Lay out what each way of choosing a mask reached on FC5, and the bound below all masks."""
    sides = read_result(root / FOLDER / "fc5-digits").two_sides
    if sides is None:
        return "Not run yet in this version."
    kept = {words: percent(sides.candidates[way]) for way, words in WAYS.items()
            if way in sides.candidates}  # fmt: skip
    if sides.certificate is not None:
        kept["**no mask, within the Gauss-Newton quadratic**"] = f"**{percent(sides.certificate)}**"
    return markdown_table({"mask": list(kept), "kept": list(kept.values())})


def blocks(root: Path) -> dict[str, dict[str, str]]:
    """Return what is written between the markers of the pages, by page and marker."""
    every = sides_table.table(sides_table.read(root / FOLDER))
    tables = {"sides": every, "candidates": candidates(root), "layers": layers(root),
              "peers": peers(root), "brute_force": written(root, "brute_force"),
              "l1": written(root, "l1_and_l0")}  # fmt: skip
    for block, names in BLOCKS.items():
        folders = {name: root / FOLDER / name for name in names}
        results = {n: read_result(f) for n, f in folders.items() if (f / "result.json").exists()}
        tables[block] = comparison_table(results, ROWS)
    return {PAGE: tables, "README.md": {"sides": two_sides(root)}}
