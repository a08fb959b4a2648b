"""The tables of docs/speed.md, convolutions.md and kink_at_zero.md, from results of benchmarks."""

from functools import partial
from pathlib import Path

from jaxlimit.lab.content import read_json
from jaxlimit.lab.markdown import comparison_table, markdown_table

FOLDER = "benchmarks/results"
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


def read(root: Path, name: str) -> dict | None:
    """Read a committed result, if it is there."""
    path = root / FOLDER / f"{name}.json"
    return read_json(path) if path.exists() else None


def cell(seconds: dict[str, dict], *, case: str) -> str:
    """Show a contender's least time in a case and, if it was timed more than once, the median."""
    if case not in seconds:
        return "-"
    taken = seconds[case]
    median = f" ({taken['median']:.3g})" if len(taken["all"]) > 1 else ""
    return f"{taken['minimum']:.3g}{median} s"


def speeds(root: Path) -> str:
    """Build the table of seconds, a row a case."""
    results = {name: result for name in CASES if (result := read(root, name))}
    columns = {
        contender: {
            name: result["seconds"][contender]
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


def remarks(root: Path) -> list[str]:
    """Say in words what the other results come to."""
    said = _of_products(root) + _of_runs(root)
    for dataset, name in (("digits", "digits"), ("cifar10", "CIFAR-10")):
        if precision := read(root, f"precision_{dataset}"):
            errors = precision["relative_errors"]["bfloat16"]
            said.append(
                f"bfloat16 products change λ_max, tr H and ρ* of an FC5 trained on {name} by "
                f"{errors['largest']:+.2%}, {errors['trace']:+.2%} and {errors['ratio']:+.2%}."
            )
    return said


def _of_products(root: Path) -> list[str]:
    if not (product := read(root, "hessian_product_fc5")):
        return []
    said = []
    rates = product["matmul_rates"]
    ours = product["share_of_matmul_rate, ours"]
    bare = product["share_of_matmul_rate, bare products"]["float32"]
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
        f"{ours['bfloat16']:.0%} of that; the float32 matrix products alone, of the same "
        f"shapes but with nothing between them, reach {bare:.0%}."
    )
    if kept := read(root, "kept_memory/hessian_product_fc5"):
        least = {name: taken["minimum"] for name, taken in kept["seconds"].items()}
        said.append(
            "Where the allocator keeps freed memory (`MALLOC_MMAP_MAX_=0 "
            "MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_ARENA_MAX=1`) no call waits for fresh "
            f"pages: {least['ours, float32']:.3g} s, {least['ours, bfloat16']:.3g} s, and "
            f"{least['PyHessian']:.3g} s for PyHessian. In the one compiled loop of a Lanczos "
            "run that is so anyway."
        )
    return said


def _of_runs(root: Path) -> list[str]:
    said = []
    if quadrature := read(root, "lanczos_speed_side-by-side"):
        share = quadrature["share_of_recurrence"]["float32"]
        least = {name: taken["minimum"] for name, taken in quadrature["seconds"].items()}
        said.append(
            f"Of the float32 run with full reorthogonalisation on "
            f"{quadrature['settings']['num_images']:,} images, {share:.0%} is not products; that "
            "part does not grow with the images; PyHessian's density takes "
            f"{least['PyHessian'] / least['ours, float32']:.2f} times as long, "
            f"{least['PyHessian'] / least['ours, bfloat16']:.2f} times with bfloat16 products."
        )
    if deep := read(root, "lanczos_speed_deep"):
        said.append(
            f"With bfloat16 products {deep['settings']['num_steps']:,} steps without a basis take "
            f"{deep['seconds']['ours, bfloat16']['minimum']:.1f} s, the products alone "
            f"{deep['seconds']['products, bfloat16']['minimum']:.1f} s."
        )
    if memory := read(root, "peak_memory"):
        of = memory["bytes"]["spectrum, float32"]
        held = of["held"].values()
        said.append(
            f"A float32 spectrum of {memory['settings']['num_steps']} steps takes "
            f"{(of['peak'] - of['before']) / 2**30:.2f} GiB at its peak, "
            f"{sum(held) / 2**30:.2f} of them basis, operands and linearisation."
        )
    return said


def alternatives(cases: dict[str, dict]) -> str:
    """Lay out what blocks and a known null space bring, spectrum by spectrum."""
    errors = [case["alternatives, node at 0"] for case in cases.values()]
    columns = {"spectrum": list(cases)}
    for name in errors[0]:
        heading = f"{name}: {', '.join(errors[0][name])} products"
        columns[heading] = [", ".join(f"{e:.1%}" for e in one[name].values()) for one in errors]
    return markdown_table(columns)


def networks(root: Path) -> str:
    """Build the table of whole steps and products of convolutional networks beside PyTorch."""
    columns: dict[str, list[str]] = {
        "case": [],
        "operands": [],
        "ours": [],
        "PyTorch": [],
        "ours / PyTorch": [],
    }
    for path in sorted((root / FOLDER).glob("convolutional_networks-*.json")):
        result = read_json(path)
        settings, seconds = result["settings"], result["seconds"]
        rates = {
            side: [settings["num_images"] / taken["wall"][which] for which in ("minimum", "median")]
            for side, taken in seconds.items()
        }
        if "torch" not in rates:
            continue
        work, network, pixels = settings["case"].split()
        columns["case"].append(f"{work}, {network}, {pixels} pixels a side")
        columns["operands"].append(settings["dtype"])
        for side, title in {"ours": "ours", "torch": "PyTorch"}.items():
            columns[title].append("{:.3g} ({:.3g})".format(*rates[side]))
        columns["ours / PyTorch"].append(f"{rates['ours'][0] / rates['torch'][0]:.2f}")
    return markdown_table(columns)


def first_answer(root: Path) -> str:
    """Tell what the way from `pip install` to a pruned network took, step by step."""
    result = read(root, "first_answer")
    if result is None:
        return ""
    before, seconds = result["before"], result["seconds"]
    steps = {
        "environment": "an environment of its own",
        "install": "`pip install` of the wheel with its extras",
        "new": f"`jaxlimit new {result['library']}`",
        "study": "`jaxlimit study my_model.py:task`, which trains the network too",
        "prune": "`jaxlimit prune my_model.py:task`",
        "load": "loading what came out, in Python",
    }
    rows = {"step": list(steps.values()), "seconds": [f"{seconds[name]:.1f}" for name in steps]}
    where = result["environment"]
    return (
        f"{markdown_table(rows)}\n\n"
        f"In all {result['minutes']:.2f} minutes and {result['lines']} lines of one's own, on "
        f"{where['cores']} {where['platform'].upper()} cores with Python {where['python']} and "
        f"JAX {where['jax']}. It was {before['minutes']:g} minutes and {before['lines']} lines "
        f"with {before['of']}."
    )


def blocks(root: Path) -> dict[str, dict[str, str]]:
    """Return what is written between the markers of the pages, by page and marker."""
    bullets = "\n".join(f"- {remark}" for remark in remarks(root))
    pages = {
        "docs/speed.md": {"speeds": f"{speeds(root)}\n\n{bullets}"},
        "docs/convolutions.md": {"networks": networks(root)},
        "docs/command.md": {"first_answer": first_answer(root)},
    }
    if kink := read(root, "kink_at_zero"):
        pages["docs/kink_at_zero.md"] = {
            "kink": f"{kink['table']}\n\n{kink['conclusion']}",
            "alternatives": alternatives(kink["cases"]),
        }
    return pages
