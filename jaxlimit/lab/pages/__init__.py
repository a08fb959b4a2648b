"""The parts of README and docs/ that are written from committed results."""

from pathlib import Path

from jaxlimit.lab.markdown import replace_block
from jaxlimit.lab.pages import questions, results, scale, speed


def blocks(root: Path) -> dict[str, dict[str, str]]:
    """Return what stands between the markers of every page, by page and marker."""
    pages: dict[str, dict[str, str]] = {}
    for part in (results, questions, speed, scale):
        for page, content in part.blocks(root).items():
            pages[page] = pages.get(page, {}) | content
    return pages


def write(root: Path) -> list[str]:
    """Write every block into its page, and return the names of the pages."""
    pages = blocks(root)
    for page, content in pages.items():
        for name, block in content.items():
            replace_block(root / page, name, block)
    return list(pages)
