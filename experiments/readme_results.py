"""Write the README's result tables from the committed results.

python experiments/readme_results.py        # rewrites README.md between its markers
"""

from pathlib import Path

from jaxlimit.lab.reporting import comparison_table, read_json, replace_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
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


def limit(result: dict) -> str:
    """Show a predicted limit with its interval."""
    return interval(*(result[name] for name in ("ratio", "lower", "upper")))


ROWS = {
    "epochs, learning rate, l1": lambda r: (
        "{epochs}, {learning_rate} {schedule}, {l1:g}".format(**r["config"])
        + (", augmented" if r["config"]["augment"] else "")
    ),
    "weights D; ε": lambda r: f"{r['dim']:,}; {r['epsilon']:.3g}",
    "Hessian images, Lanczos depth": lambda r: f"{r['hessian_images']:,}, {r['depth']}",
    "**predicted ρ\\***, 95 % interval": lambda r: f"**{limit(r['prediction'])}**",
    "with λ < 0 taken for flat": lambda r: limit(r["clipped"]),
    "corrected threshold": lambda r: limit(r["corrected"]),
    "gap Δ": lambda r: interval(r["gap"], *r["gap_interval"]),
    "**measured**, by training loss": lambda r: f"**{percent(r['measured']['by_loss'])}**",
    "with the l1 term in the loss": lambda r: percent(r["measured"]["by_loss_with_l1"]),
    "by test accuracy, 1 point tolerated": lambda r: percent(r["measured"]["by_accuracy"]),
    "baseline: support of the weights": lambda r: percent(r["baseline"]["support"]),
    "baseline: second-order Taylor": lambda r: percent(r["baseline"]["taylor"]),
    "distance from the minimum, of ‖w‖": lambda r: f"{r['distance_from_minimum']['relative']:.1e}",
    "test accuracy, dense and pruned": lambda r: (
        f"{r['dense']['accuracy']:.1%}, {r['pruned_accuracy']:.1%}"
    ),
}


def table(names: list[str]) -> str:
    """Build a table with a column for each committed result."""
    paths = {name: RESULTS / name / "result.json" for name in names}
    results = {n: read_json(path) for n, path in paths.items() if path.exists()}
    return comparison_table(results, ROWS)


def main() -> None:
    """Rewrite every block."""
    for block, names in BLOCKS.items():
        replace_block(ROOT / "README.md", block, table(names))


if __name__ == "__main__":
    main()
