"""Tables in Markdown, and blocks of pages that are generated from results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlimit._core import files


def markdown_table(columns: dict[str, list[str]]) -> str:
    """Lay columns out as a table in markdown.

    >>> print(markdown_table({"D": ["10", "20"], "ρ*": ["0.5", "0.4"]}))
    | D | ρ* |
    | --- | --- |
    | 10 | 0.5 |
    | 20 | 0.4 |
    """
    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def comparison_table(columns: dict[str, Any], rows: dict[str, Callable[[Any], str]]) -> str:
    """Lay results out side by side, each a column.

    Args:
        columns: the results by their headings.
        rows: for each label, a function that makes a cell from a result.
    """
    cells = {name: [show(result) for show in rows.values()] for name, result in columns.items()}
    return markdown_table({"": list(rows)} | cells)


def replace_block(path: Path, name: str, content: str) -> None:
    """Put `content` between the markers `<!-- name:begin -->` and `<!-- name:end -->` of a file.

    Raises:
        ValueError: if the file does not hold each marker once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"path must hold {begin} and then {end}, once each, got {path}")
    before, rest = text.split(begin)
    files.write_text(path, f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}")
