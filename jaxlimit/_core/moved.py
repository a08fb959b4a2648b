"""Modules of an earlier version under their old names, for one version and with a warning."""

import importlib
import sys
import warnings
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


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
