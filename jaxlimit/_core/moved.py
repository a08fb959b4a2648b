"""Modules and keywords of an earlier version, kept for one version and with a warning."""

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import signature
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

Params = ParamSpec("Params")
Result = TypeVar("Result")


class MovedModules(MetaPathFinder, Loader):
    """Find modules by their old names.

    Args:
        moved: the new dotted name for each old one.
    """

    def __init__(self, moved: Mapping[str, str]):
        self.moved = moved

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Take over the import of an old name, and leave all others to Python."""
        return ModuleSpec(fullname, self) if fullname in self.moved else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module that has the new name in the place of the old one."""
        old = module.__name__
        new = self.moved[old]
        message = f"{old} is now {new}; the old name goes in the next version"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


def gathers_keywords(
    **objects: type,
) -> Callable[[Callable[Params, Result]], Callable[Params, Result]]:
    """Let a function that takes settings as one object still take each of them as a keyword.

    Args:
        **objects: for each argument of the function that is such an object, its type.

    >>> from typing import NamedTuple
    >>> class Size(NamedTuple):
    ...     width: int = 1
    >>> @gathers_keywords(size=Size)
    ... def area(height, *, size=Size()):
    ...     return height * size.width
    >>> with warnings.catch_warnings(record=True) as told:
    ...     area(2, width=3)
    6
    >>> str(told[0].message)
    'area(width=...) is now area(size=Size(width=...)); the old form goes in the next version'
    """
    homes = {field: name for name, kind in objects.items() for field in signature(kind).parameters}

    def decorate(function: Callable[Params, Result]) -> Callable[Params, Result]:
        told = getattr(function, "__name__", "function")

        @wraps(function)
        def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
            old = {field: kwargs.pop(field) for field in homes if field in kwargs}
            for name, kind in objects.items():
                given = {field: old[field] for field in old if homes[field] == name}
                if not given:
                    continue
                fields = ", ".join(f"{field}=..." for field in given)
                form = f"{told}({name}={kind.__name__}({fields}))"
                if kwargs.get(name) is not None:
                    raise TypeError(f"{told} takes {name} or {', '.join(given)}, not both: {form}")
                warnings.warn(
                    f"{told}({fields}) is now {form}; the old form goes in the next version",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[name] = kind(**given)
            return cast(Callable, function)(*args, **kwargs)

        return wrapper

    return decorate
