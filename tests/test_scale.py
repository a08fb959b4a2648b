"""The tables of docs/scale.md are those that the committed results make."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("rich")

import scale_tables


def test_tables_of_the_document_are_those_of_the_results():
    text = scale_tables.DOCUMENT.read_text()
    for name, content in scale_tables.blocks().items():
        _, block = text.split(f"<!-- {name}:begin -->")
        block, _ = block.split(f"<!-- {name}:end -->")
        assert block.strip() == content, "run benchmarks/scale_tables.py"
