"""Write the README's result tables from the committed results.

python experiments/readme_results.py        # rewrites README.md between its markers
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
BLOCKS = {
    "digits": ["fc5-digits"],
    "cifar": ["fc5-cifar10-annealed", "fc5-cifar10-paper"],
}


def percent(value: float) -> str:
    """Show a ratio in per cent."""
    return f"{100 * value:.3g} %"


def interval(limit: dict) -> str:
    """Show a predicted limit with its interval."""
    return f"{percent(limit['ratio'])} [{percent(limit['lower'])}, {percent(limit['upper'])}]"


ROWS = {
    "epochs, learning rate, l1": lambda r: (
        "{epochs}, {learning_rate} {schedule}, {l1:g}".format(**r["config"])
        + (", augmented" if r["config"]["augment"] else "")
    ),
    "weights D; ε": lambda r: f"{r['dim']:,}; {r['epsilon']:.3g}",
    "Hessian images, Lanczos depth": lambda r: f"{r['hessian_images']:,}, {r['depth']}",
    "**predicted ρ\\***, 95 % interval": lambda r: f"**{interval(r['prediction'])}**",
    "with λ < 0 taken for flat": lambda r: interval(r["clipped"]),
    "corrected threshold": lambda r: interval(r["corrected"]),
    "gap Δ": lambda r: percent(r["gap"]),
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
    results = []
    for name in names:
        path = RESULTS / name / "result.json"
        if path.exists():
            results.append((name, json.loads(path.read_text())))
    lines = [
        "| | " + " | ".join(name for name, _ in results) + " |",
        "| --- " * (len(results) + 1) + "|",
    ]
    lines += [
        f"| {label} | " + " | ".join(show(result) for _, result in results) + " |"
        for label, show in ROWS.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Rewrite every block."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for block, names in BLOCKS.items():
        begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        content = f"{begin}\n\n{table(names)}\n\n{end}"
        text = pattern.sub(lambda _, content=content: content, text)
    readme.write_text(text)


if __name__ == "__main__":
    main()
