"""Write a page for each public module, with every name of its `__all__`.

The docstrings are shown as they are written: they are laid out for `help()` in a terminal.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

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
            signature = f"{name}{inspect.signature(value)}"
        except (TypeError, ValueError):
            signature = f"{name}(...)"
    else:
        signature = f"{name}: {type(value).__name__}"
    documented = inspect.isclass(value) or inspect.isroutine(value)
    said = inspect.getdoc(value) if documented else repr(value)
    return [f"## {name}", "", "~~~text", _wrapped(signature), "~~~", "", "~~~text",
            said or "", "~~~", ""]  # fmt: skip


def _wrapped(signature: str) -> str:
    if len(signature) <= 88:
        return signature
    return signature.replace("(", "(\n    ", 1).replace(", ", ",\n    ")
