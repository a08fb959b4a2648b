"""Write the README's table of speeds from the committed results of the benchmarks.

python benchmarks/readme_table.py        # rewrites README.md between its markers
"""

import json
from functools import partial
from pathlib import Path

from jaxlimit.reporting import comparison_table, replace_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CONTENDERS = (
    "ours, float32",
    "ours, bfloat16",
    "plain JAX",
    "matfree",
    "PyHessian",
    "curvlinops",
)
CASES = {
    "hessian_product_fc5": "one product, FC5",
    "hessian_product_resnet18": "one product, ResNet18 of width 16",
    "lanczos_speed_side-by-side": "{num_steps} Lanczos steps, FC5",
}


def read(name: str) -> dict | None:
    """Read a committed result, if it is there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def cell(seconds: dict[str, float], *, case: str) -> str:
    """Show a contender's least time in a case."""
    return f"{seconds[case]:.3g} s" if case in seconds else "-"


def speeds() -> str:
    """Build the table of least seconds, a row a case."""
    results = {name: result for name in CASES if (result := read(name))}
    columns = {
        contender: {
            name: result["seconds"][contender]["minimum"]
            for name, result in results.items()
            if contender in result["seconds"]
        }
        for contender in CONTENDERS
    }
    rows = {
        f"{CASES[name].format(**result['settings'])}, D = {result['dim']:,}, "
        f"{result['settings']['num_images']:,} images": partial(cell, case=name)
        for name, result in results.items()
    }
    return comparison_table(columns, rows)


def remarks() -> list[str]:
    """Say in words what the other results come to."""
    said = []
    if product := read("hessian_product_fc5"):
        rates = product["matmul_rates"]
        ours, bare = (product[f"share_of_matmul_rate, {w}"] for w in ("ours", "bare products"))
        least = {name: taken["minimum"] for name, taken in product["seconds"].items()}
        peer = min(least["PyHessian"], least["curvlinops"])
        first = product["seconds"]["ours, float32"]["until_first"]
        said.append(
            f"One product on FC5 is {peer / least['ours, float32']:.2f} times as fast as the "
            f"fastest PyTorch peer's in float32 and {peer / least['ours, bfloat16']:.2f} times in "
            f"bfloat16, {least['plain JAX'] / least['ours, float32']:.2f} times as fast as plain "
            f"JAX; the first comes after {first:.1f} s."
        )
        said.append(
            f"Square matrix products ran at {rates['matmul float32'] / 1e9:.0f} GFLOP/s in float32 "
            f"and {rates['matmul bfloat16'] / 1e9:.0f} in bfloat16 in the same run; counted on the "
            f"linear part's operations, ours reach {ours['float32']:.0%} and "
            f"{ours['bfloat16']:.0%} of that; its matrix products alone, of the same shapes but "
            f"with nothing between them, reach {bare['float32']:.0%} and {bare['bfloat16']:.0%}."
        )
    if quadrature := read("lanczos_speed_side-by-side"):
        share = quadrature["share_of_recurrence"]["float32"]
        said.append(
            f"Of the float32 run with full reorthogonalisation on "
            f"{quadrature['settings']['num_images']:,} images, {share:.0%} is not products; that "
            "part does not grow with the images."
        )
    if deep := read("lanczos_speed_deep"):
        said.append(
            f"{deep['settings']['num_steps']:,} steps without a basis take "
            f"{deep['seconds']['ours, bfloat16']['minimum']:.1f} s, as many products "
            f"{deep['seconds']['products, bfloat16']['minimum']:.1f} s."
        )
    for dataset, name in (("digits", "digits"), ("cifar10", "CIFAR-10")):
        if precision := read(f"product_precision_{dataset}"):
            errors = precision["relative_error"]
            said.append(
                f"bfloat16 products change λ_max, tr H and ρ* of an FC5 trained on {name} by "
                f"{errors['largest']:+.2%}, {errors['trace']:+.2%} and {errors['ratio']:+.2%}."
            )
    return said


def main() -> None:
    """Rewrite the block."""
    bullets = "\n".join(f"- {remark}" for remark in remarks())
    replace_block(ROOT / "README.md", "speeds", f"{speeds()}\n\n{bullets}")


if __name__ == "__main__":
    main()
