"""How experiments end, and what they keep on the way."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from jaxlimit.lab.content import read_json
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.points import known_or_made
from jaxlimit.lab.statistics import rank_correlation


@dataclass
class Config:
    steps: int
    output: Path


def test_an_end_writes_draws_and_says(tmp_path, capsys):
    path = tmp_path / "new" / "result.json"
    path.parent.mkdir()
    finish(path, Config(3, tmp_path), "It holds.", table="| a |", figures={"a.png": Figure()}, n=2)
    found = read_json(path)
    assert found["config"] == {"steps": 3}  # no path of this machine
    assert (found["sentence"], found["table"], found["n"]) == ("It holds.", "| a |", 2)
    assert found["environment"]["jax"]
    assert path.with_name("a.png").read_bytes()[1:4] == b"PNG"
    said = capsys.readouterr().out
    assert said.index("| a |") < said.index("It holds.")
    finish(path, Config(3, tmp_path), ["One.", "Two."], table={"x": "| b |"})
    again = read_json(path)
    assert (again["sentences"], again["tables"]) == (["One.", "Two."], {"x": "| b |"})
    assert "sentence" not in again


def test_a_point_is_made_once_for_its_settings(tmp_path):
    path, made = tmp_path / "points" / "a.json", []

    def make():
        made.append(1)
        return {"loss": float(len(made))}

    assert known_or_made(path, {"seed": 0}, make) == {"loss": 1.0}
    assert known_or_made(path, {"seed": 0}, make) == {"loss": 1.0}
    assert known_or_made(path, {"seed": 1}, make) == {"loss": 2.0}
    path.write_text(path.read_text().replace("2.0", "3.0"))
    with pytest.raises(ValueError, match="was changed since"):
        known_or_made(path, {"seed": 1}, make)


def test_ranks_alone_count_and_a_constant_has_none():
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 50]) == pytest.approx(0.8)
    assert math.isnan(rank_correlation([1, 2], [3, 3]))
