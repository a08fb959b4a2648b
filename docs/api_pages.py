"""Write a page for each public module, with every name of its `__all__`.

The docstrings are shown as they are written: they are laid out for `help()` in a terminal.
"""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from jaxtyping import PRNGKeyArray

import jaxlimit


def modules() -> list[str]:
    """Return the public modules, the package first."""
    found = [name for name in jaxlimit.__all__ if inspect.ismodule(getattr(jaxlimit, name))]
    return ["jaxlimit", *(f"jaxlimit.{name}" for name in sorted(found))]


def names(module: str) -> list[str]:
    """Return the public names of a module that are no modules themselves."""
    loaded = importlib.import_module(module)
    public = getattr(loaded, "__all__", None)
    if public is None:
        public = [
            name
            for name, value in vars(loaded).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module
        ]
    return sorted(
        (name for name in public if not inspect.ismodule(getattr(loaded, name))), key=str.lower
    )


def write(folder: Path) -> None:
    """Write all pages and their index."""
    folder.mkdir(exist_ok=True)
    listed = []
    for module in modules():
        loaded = importlib.import_module(module)
        text = [f"# {module}", "", inspect.getdoc(loaded) or "", ""]
        for name in names(module):
            text += _entry(module, name, getattr(loaded, name))
        (folder / f"{module}.md").write_text("\n".join(text) + "\n")
        listed.append(module)
    index = ["# API", "", "Every public name. Importing a module loads what it needs, no more.", "",
             "```{toctree}", ":maxdepth: 1", "", *listed, "```", ""]  # fmt: skip
    (folder / "index.md").write_text("\n".join(index))


def _entry(module: str, name: str, value: Any) -> list[str]:
    signature = ""
    if callable(value):
        try:
            signature = _signature(name, inspect.signature(value))
        except (TypeError, ValueError):
            signature = f"{name}(...)"
    else:
        signature = f"{name}: {type(value).__name__}"
    documented = inspect.isclass(value) or inspect.isroutine(value)
    said = inspect.getdoc(value) if documented else repr(value)
    return [f"## {name}", "", "~~~text", signature, "~~~", "", "~~~text",
            said or "", "~~~", ""]  # fmt: skip


def _signature(name: str, found: inspect.Signature) -> str:
    """Lay a signature out, an argument a line where it is long, with types as they are written."""
    if len(one := _plain(f"{name}{found}")) <= 88:
        return one
    lines, starred = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("*")
        starred |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        lines.append(_plain(str(parameter)))
    returned = _plain(str(found.replace(parameters=())))[2:]
    return "\n    ".join([f"{name}(", *(f"{line}," for line in lines)]) + f"\n){returned}"


def _plain(text: str) -> str:
    """Write types as the source does."""
    text = text.replace(inspect.formatannotation(PRNGKeyArray), "PRNGKeyArray")
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)
    text = re.sub(r"\*<class '[\w.]*?(\w+)'>", r"Unpack[\1]", text)
    return re.sub(
        r"\b(?:jaxlimit|jaxtyping|collections|typing|jaxlib)(?:\.\w+)*\.(\w+)", r"\1", text
    )
