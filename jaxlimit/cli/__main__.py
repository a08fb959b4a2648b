"""`python -m jaxlimit.cli` is the command itself."""

from jaxlimit.cli.main import entry

entry()
