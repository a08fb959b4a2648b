"""Write the tables of docs/ from the committed results of experiments and benchmarks.

python experiments/pages.py            # rewrites what stands between the markers of the pages
"""

import dataclasses
from pathlib import Path

import tyro

from jaxlimit.lab import pages
from jaxlimit.lab.console import console


@dataclasses.dataclass(frozen=True)
class Config:
    """Write the tables of docs/ from the committed results."""

    root: Path = Path(__file__).parents[1]
    """The repository."""


def main(config: Config) -> None:
    """Write every page."""
    for page in pages.write(config.root):
        console.print(f"wrote the tables of {page}")


if __name__ == "__main__":
    main(tyro.cli(Config))
