"""Settings and results in files, tables between markers, calls timed in turns."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("rich")

from jaxlimit.lab.reporting import build, comparison_table, plain, replace_block, time_in_turns


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


def test_table_shows_each_column_by_each_row():
    columns = {"a": {"size": 2}, "b": {"size": 3}}
    rows = {"size": lambda c: str(c["size"]), "square": lambda c: str(c["size"] ** 2)}
    assert comparison_table(columns, rows).splitlines() == [
        "|  | a | b |",
        "| --- | --- | --- |",
        "| size | 2 | 3 |",
        "| square | 4 | 9 |",
    ]


def test_block_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before <!-- x:begin -->\nold\n<!-- x:end --> after <!-- y:begin -->")
    for _ in range(2):
        replace_block(path, "x", r"new \1")
        expected = "before <!-- x:begin -->\n\nnew \\1\n\n<!-- x:end --> after <!-- y:begin -->"
        assert path.read_text() == expected


@pytest.mark.parametrize("text", ["", "<!-- x:begin -->", "<!-- x:end --><!-- x:begin -->"])
def test_missing_marker_is_named(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="must hold <!-- x:begin --> and then <!-- x:end -->"):
        replace_block(path, "x", "new")
    assert path.read_text() == text


def test_calls_take_turns():
    order = []
    seconds = time_in_turns({n: lambda n=n: order.append(n) for n in "ab"}, repeats=2)
    assert order == list("ababab")
    assert {len(taken["all"]) for taken in seconds.values()} == {2}
    order.clear()
    seconds = time_in_turns(
        {n: lambda n=n: order.append(n) for n in "ab"}, repeats=1, warm_up=False
    )
    assert order == list("ab")
    assert "first" not in seconds["a"]
