"""The tables of docs/scale.md, from the results of the benchmarks."""

from itertools import product
from pathlib import Path
from typing import Any

from jaxlimit.lab.content import read_json
from jaxlimit.lab.markdown import markdown_table

FOLDER = "benchmarks/results"
USABLE = 72e9  # bytes: nine tenths of a device of 80 GB
NAMES = {"fc5": "FC5", "resnet18": "ResNet18", "resnet50": "ResNet50"}
MODES = {"linearized": "linearised", "forward-over-reverse": "batch by batch"}
PRECISIONS = {"float32": "float32", "tf32": "TF32", "bfloat16": "bfloat16"}
STORES = {
    "": "on the device",
    ", bfloat16": "in bfloat16",
    ", pinned_host": "in pinned host memory",
}


def checks(result: dict[str, Any]) -> str:
    """Set the model beside the compiler's counts, a row a program."""
    rows = []
    for case, found in result["checks"].items():
        name, mode = case.split(", ")
        flops, memory, moved = (
            found[of] for of in ("flops", "temporary_bytes", "read_and_written_bytes")
        )
        rows.append(
            {
                "": f"{NAMES[name]}, {MODES[mode]}",
                "operations: model / compiler": f"{flops['model'] / flops['compiled']:.2f}",
                "read and written: model / compiler": f"{moved['model'] / moved['compiled']:.2f}",
                "a product's temporaries: planned / compiled": (
                    f"{memory['planned'] / 1e6:.0f} / {memory['compiled'] / 1e6:.0f} MB"
                ),
            }
        )
    return _table(rows)


def accuracy(precisions: dict[str, dict[str, Any]], storage: dict[str, Any]) -> str:
    """Set out what precisions and places for the basis cost, a row each."""
    rows = []
    for (data, precision), name in product(precisions.items(), PRECISIONS):
        seconds = precision["seconds_a_product"].get(name)
        row = _errors(precision["relative_errors"][name], precision["readings"][name])
        rows.append({"": f"{data}, {PRECISIONS[name]} products, against float64"} | row | {
            "time": f"{seconds['minimum']:.3f} s a product" if seconds else "emulated",
            "vectors on the device": "",
        })  # fmt: skip
    for name, found in storage["results"].items():
        kind, _, store = name.partition(",")
        where = STORES[f",{store}" if store else ""]
        label = "no basis" if kind == "none" else f"{kind} reorthogonalisation, basis {where}"
        label = f"digits, {label}"
        row = _errors(found["relative_errors"], found["reading"])
        rows.append({"": label} | row | {
            "time": f"{min(found['seconds_a_step']):.3f} s a step",
            "vectors on the device": f"{found['vectors_of_device_memory']:.0f}",
        })  # fmt: skip
    return _table(rows)


def plans(result: dict[str, Any]) -> str:
    """Set the projections out, a row each."""
    rows = []
    for name, entry in result["projections"].items():
        cost = entry["cost"]
        gigabytes = {
            heading: f"{cost[field] / 1e9:.2g} GB"
            for heading, field in {
                "Lanczos": "vector_bytes",
                "weights kept": "parameter_bytes",
                "whole during a product": "whole_bytes",
                "activations and tangents": "activation_bytes",
            }.items()
        }
        rows.append(
            {
                "": name,
                "a step": f"{entry['seconds_a_step']:.2g} s",
                f"{result['steps']} steps": f"{entry['seconds_for_the_run'] / 60:.2g} min",
                "operations a device": f"{cost['flops']:.2g}",
                "read and written": f"{cost['memory_bytes'] / 1e9:,.0f} GB",
                "sent": f"{cost['link_bytes'] / 1e9:.2g} GB",
            }
            | gigabytes
            | {"fits 72 GB": "yes" if entry["device_bytes"] <= USABLE else "**no**"}
        )
    return _table(rows)


def _errors(errors: dict[str, float], reading: dict[str, float]) -> dict[str, str]:
    return {
        "error of λ_max": f"{errors['largest']:+.0e}",
        "of tr H": f"{errors['trace']:+.0e}",
        r"of ρ\*": f"{errors['ratio']:+.2%}",
        r"interval, of ρ\*": f"{reading['width'] / reading['ratio']:.1%}",
    }


def _table(rows: list[dict[str, str]]) -> str:
    return markdown_table({heading: [row[heading] for row in rows] for heading in rows[0]})


def blocks(root: Path) -> dict[str, dict[str, str]]:
    """Return what is written between the markers of the page, by page and marker."""

    def read(name: str) -> dict[str, Any]:
        return read_json(root / FOLDER / f"{name}.json")

    model = read("scale_model")
    precisions = {"digits": read("precision_digits"), "CIFAR-10": read("precision_cifar10")}
    return {
        "docs/scale.md": {
            "checks": checks(model),
            "accuracy": accuracy(precisions, read("basis_storage_digits")),
            "plans": plans(model),
        }
    }
