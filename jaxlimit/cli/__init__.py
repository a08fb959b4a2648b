"""The `jaxlimit` command."""

from jaxlimit.cli.main import entry, main

__all__ = ["entry", "main"]
