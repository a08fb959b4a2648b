"""Settings out of TOML and JSON: checked, and the inverse of how results are written."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("rich")

from jaxlimit.reporting import build, plain


@dataclasses.dataclass(frozen=True)
class Settings:
    epochs: int = 1
    rate: float = 0.1
    schedule: Literal["constant", "cosine"] = "constant"
    augment: bool = False
    milestones: tuple[int, ...] = ()
    folder: Path | None = None


def test_build_gives_back_what_plain_wrote():
    settings = Settings(3, 0.5, "cosine", True, (1, 2), Path("a/b"))
    assert build(Settings, plain(settings), "here") == settings
    assert build(Settings, plain(Settings()), "here") == Settings()
    assert build(Settings, {"rate": 1}, "here").rate == 1.0


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"epoch": 3}, ValueError, "row: unknown setting 'epoch', did you mean 'epochs'"),
        ({"epochs": 3.5}, TypeError, "row: epochs must be int, got 3.5"),
        ({"epochs": True}, TypeError, "epochs must be int, got True"),
        ({"rate": "0.1"}, TypeError, "rate must be float, got '0.1'"),
        ({"augment": 1}, TypeError, "augment must be bool, got 1"),
        ({"schedule": "linear"}, TypeError, "schedule must be .*'cosine'.*, got 'linear'"),
        ({"milestones": [1, 2.5]}, TypeError, r"milestones must be tuple\[int.*got \[1, 2.5\]"),
        ({"milestones": 3}, TypeError, r"milestones must be tuple\[int.*got 3"),
        ({"folder": 3}, TypeError, "folder must be .*Path.*got 3"),
    ],
)
def test_build_names_the_setting_at_fault(values, error, says):
    with pytest.raises(error, match=says):
        build(Settings, values, "row")


def test_plain_makes_json_of_results():
    assert plain({"a": np.float32(0.25), "b": (np.arange(2), float("nan"))}) == {
        "a": 0.25,
        "b": [[0, 1], "nan"],
    }
