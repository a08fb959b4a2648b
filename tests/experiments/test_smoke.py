"""Every experiment on the open questions by `--smoke`: it runs, says what came out, and writes."""

import importlib

import pytest

pytest.importorskip("rich")
pytest.importorskip("tyro")

from jaxlimit.lab.content import read_json

FIGURES = {
    "adaptive_ratio": "layers.png",
    "as_published": "as_published.png",
    "brute_force": None,
    "iterative_pruning": "iterative_pruning.png",
    "l1_and_l0": "l1_and_l0.png",
    "regularisation": "regularisation.png",
    "way_to_prune": "way_to_prune.png",
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_trial_runs_and_runs_again(name, tmp_path, capsys):
    script = importlib.import_module(name)
    script.main(script.Config(smoke=True, output=tmp_path))
    first = capsys.readouterr().out
    (written,) = [p for p in tmp_path.glob("*.json") if p.stem in ("result", name)]
    content = read_json(written)
    assert content["environment"]
    assert "|" in first
    if (figure := FIGURES[name]) is not None:
        assert 5_000 < (tmp_path / figure).stat().st_size < 300_000
    assert "claim" in content["sentence"]
    for table in content.get("tables", {"": content.get("table")}).values():
        assert table in first
