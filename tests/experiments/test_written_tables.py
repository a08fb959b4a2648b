"""The tables of docs/ are those that the committed results make."""

from pathlib import Path

import pytest

pytest.importorskip("rich")

from jaxlimit.lab import pages

ROOT = Path(__file__).parents[2]


def test_tables_are_those_of_the_results():
    blocks = pages.blocks(ROOT)
    assert sum(map(len, blocks.values())) >= 8
    for page, content in blocks.items():
        text = (ROOT / page).read_text()
        for name, block in content.items():
            written = f"<!-- {name}:begin -->\n\n{block}\n\n<!-- {name}:end -->"
            assert written in text, f"run experiments/pages.py: {name} in {page}"
        assert text.count(":begin -->") == len(content), f"a block of {page} is written by nothing"
