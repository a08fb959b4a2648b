"""Optional packages: loaded when needed; if missing, the error names the extra to install."""

import importlib
from types import ModuleType


def require(module: str, extra: str, what: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: its dotted name.
        extra: the extra of jaxlimit that brings it.
        what: what needs it, for the error.

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
