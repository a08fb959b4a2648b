"""CPU seconds that importing jaxlimit takes beyond importing JAX, in fresh processes by turns.

python benchmarks/import_time.py
"""

import dataclasses
import subprocess
import sys
from pathlib import Path
from statistics import median

import tyro

from jaxlimit.lab.reporting import console, environment, markdown_table, write_json

ROOMS = ("curvature", "lanczos", "spectrum", "traces", "limits", "geometry", "pruning", "studies")
CASES = {
    "jax": "import jax",
    "jaxlimit": "import jax, jaxlimit",
    "all numerics": "import jax, jaxlimit\n" + "\n".join(f"jaxlimit.{room}" for room in ROOMS),
    "training": "import jax, jaxlimit.training",
}
MEASURE = "\nimport resource\nu = resource.getrusage(resource.RUSAGE_SELF)\nprint(u[0] + u[1])"


@dataclasses.dataclass(frozen=True)
class Config:
    """How often to import."""

    repeats: int = 7
    output: Path = Path(__file__).parent / "results"


def cpu_seconds(code: str) -> float:
    """Run code in a fresh process and return its user and system time."""
    command = [sys.executable, "-c", code + MEASURE]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(config: Config) -> None:
    """Import by turns, and write the medians and what they exceed JAX's by."""
    start = environment()
    cpu_seconds(CASES["all numerics"])  # so that all is compiled and in the disk's cache
    rounds = [
        {case: cpu_seconds(code) for case, code in CASES.items()} for _ in range(config.repeats)
    ]
    seconds = {case: median(one[case] for one in rounds) for case in CASES}
    beyond = {case: taken - seconds["jax"] for case, taken in seconds.items()}
    write_json(
        config.output / "import_time.json",
        {"seconds": seconds, "beyond_jax": beyond, "rounds": rounds, "environment": start},
    )
    columns = {"import": list(CASES), "CPU seconds": [f"{s:.2f}" for s in seconds.values()]}
    console.print(markdown_table(columns | {"beyond JAX": [f"{s:.2f}" for s in beyond.values()]}))


if __name__ == "__main__":
    main(tyro.cli(Config))
