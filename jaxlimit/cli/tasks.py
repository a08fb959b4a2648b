"""Find the user's task by its name."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from jaxlimit.cli.errors import UsageError, near


def find_function(where: str, *, default: str | None = None) -> Any:
    """Return the function that `file.py:name` or `package.module:name` names.

    Raises:
        UsageError: if there is no such file, module or name; names the nearest.
    """
    place, _, name = where.partition(":")
    name = name or default or ""
    if not place or not name:
        raise UsageError(f"{where!r} must be FILE.py:NAME or MODULE:NAME, as in my_model.py:task")
    module = _from_file(Path(place)) if _is_file(place) else _from_package(place)
    if not hasattr(module, name):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(f"{place} has no {name!r}; {near(name, public)}")
    function = getattr(module, name)
    if not callable(function):
        raise UsageError(f"{where} must be a function, got {type(function).__name__}")
    return function


def find_task(where: str) -> Any:
    """Return the checked task that a user's function returns.

    Raises:
        UsageError: if there is no such function.
        TypeError: if it returns no task.
    """
    from jaxlimit.studies import Task, check_task

    task = _in_users_code(find_function(where, default="task"))
    if not isinstance(task, Task):
        raise TypeError(f"{where} must return a jaxlimit.Task, got {type(task).__name__}")
    return check_task(task, name=where)


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _from_file(path: Path) -> Any:
    if not path.is_file():
        folder = path.parent
        names = sorted(p.name for p in folder.glob("*.py")) if folder.is_dir() else []
        raise UsageError(f"there is no file {path}; {near(path.name, names)}")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    _in_users_code(lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def _from_package(place: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"there is no module {place!r}: give FILE.py:NAME, or install it")
    return _in_users_code(lambda: importlib.import_module(place))


def _in_users_code(call: Any) -> Any:
    try:
        return call()
    except Exception as error:
        error.in_users_code = True  # type: ignore[attr-defined]
        raise
