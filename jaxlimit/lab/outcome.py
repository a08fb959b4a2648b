"""How an experiment ends: its results as JSON, its figures, and a few lines on the console."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxlimit import plotting
from jaxlimit.lab.console import console
from jaxlimit.lab.content import without_paths, write_json
from jaxlimit.lab.environment import environment


def finish(
    path: Path,
    config: Any,
    said: str | list[str],
    *,
    table: str | Mapping[str, str] | None = None,
    figures: Mapping[str, Figure] | None = None,
    **found: Any,
) -> None:
    """Write what an experiment found, draw its figures, and print its tables and sentences.

    Args:
        path: of the JSON file; the figures go beside it.
        config: the settings of the script, kept without the paths of this machine.
        said: the conclusion in a sentence, or in several; kept as `sentence` or `sentences`.
        table: in Markdown, or several by name; kept as `table` or `tables`.
        figures: by the name of the file.
        **found: all other results by name.
    """
    content: dict[str, Any] = {"sentence" if isinstance(said, str) else "sentences": said}
    tables = [table] if isinstance(table, str) else list((table or {}).values())
    if table is not None:
        content["table" if isinstance(table, str) else "tables"] = table
    content |= found | {"config": without_paths(config), "environment": environment()}
    for name, figure in (figures or {}).items():
        plotting.save(figure, path.with_name(name))
    write_json(path, content)
    for laid_out in tables:
        console.print(laid_out, soft_wrap=True, highlight=False)
    for sentence in [said] if isinstance(said, str) else said:
        console.print(sentence, soft_wrap=True)
