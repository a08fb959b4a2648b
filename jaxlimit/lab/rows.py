"""The rows of the paper's tables, each a file of settings."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlimit.lab.settings import RunConfig, read_config

SETTINGS = ("short", "annealed", "paper", "smoke")
PAIR = ("theory", "measured")
PUBLISHED = (*PAIR, "gap")


class Row(NamedTuple):
    """A row of the paper's tables, as its file has it.

    Attributes:
        name: network and data set.
        place: in the tables.
        published: theory, measured and gap, in per cent: mean and standard deviation; empty where
            the paper lacks the network.
        common: settings of a run that all settings of the row share.
        settings: what each setting adds; its seed-N what one seed adds to that.
    """

    name: str
    place: int
    published: dict[str, tuple[float, float]]
    common: dict[str, Any]
    settings: dict[str, dict[str, Any]]

    def config(self, setting: str, seed: int, **more: Any) -> RunConfig:
        """Build the settings of a run of one seed."""
        values = dict(self.settings[setting])
        of_seed = {k: values.pop(k) for k in list(values) if re.fullmatch(r"seed-\d+", k)}
        values = self.common | values | of_seed.get(f"seed-{seed}", {}) | more
        return read_config(values, f"{self.name}, {setting}")


def read_row(path: Path) -> Row:
    """Read a row and check every setting of it, with what its seeds add and without."""
    try:
        common = tomllib.loads(path.read_text())
        place, published = common.pop("place"), common.pop("published", {})
        published = published and {name: published[name] for name in PUBLISHED}
        settings = {name: common.pop(name) for name in list(common)
                    if isinstance(common[name], dict)}  # fmt: skip
        for name in settings.keys() - set(SETTINGS):
            near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown setting [{name}], did you mean [{near}]?")
        row = Row(path.stem, place, published, common, settings)
        for setting, values in settings.items():
            own = re.findall(r"seed-(\d+)", " ".join(values))
            for seed in (-1, *map(int, own)):  # -1 never has its own
                row.config(setting, seed)
    except (KeyError, TypeError, ValueError) as error:
        error.add_note(f"in {path}")
        raise
    return row


def read_rows(folder: Path) -> list[Row]:
    """Read all rows of a folder, in the order of the tables."""
    return sorted(map(read_row, folder.glob("*.toml")), key=lambda row: row.place)


def select(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Select the rows whose names begin with one of `names`; all if there are none."""
    for name in names:
        if not any(row.name.startswith(name) for row in rows):
            known = ", ".join(row.name for row in rows)
            raise ValueError(f"rows must be names of rows or their beginnings, one of {known}; "
                             f"got {name!r}")  # fmt: skip
    return [row for row in rows if row.name.startswith(tuple(names) or ("",))]
