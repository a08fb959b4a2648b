"""The tables of the README and of docs/ are those that the committed results make."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
pytest.importorskip("rich")

import readme_results
import readme_table
import scale_tables


@pytest.mark.parametrize("script", [readme_results, readme_table, scale_tables])
def test_tables_are_those_of_the_results(script, monkeypatch):
    compared = []

    def compare(path, name, content):
        block = f"<!-- {name}:begin -->\n\n{content}\n\n<!-- {name}:end -->"
        assert block in path.read_text(), f"run {script.__file__}"
        compared.append(name)

    monkeypatch.setattr(script, "replace_block", compare)
    script.main()
    assert compared
