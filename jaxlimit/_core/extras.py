"""Packages that not every user has: loaded when they are needed, missed by the name of an extra."""

import importlib
from types import ModuleType


def require(module: str, extra: str, what: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: its dotted name.
        extra: the extra of jaxlimit that brings it.
        what: cannot be done without it.

    Raises:
        ModuleNotFoundError: if it is not installed; names the extra.

    >>> require("no_such_module", "train", "training")
    Traceback (most recent call last):
    ModuleNotFoundError: training needs no_such_module: pip install 'jaxlimit[train]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {error.name}: pip install 'jaxlimit[{extra}]'", name=error.name
        ) from error
