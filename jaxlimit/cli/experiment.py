"""`jaxlimit run`: train a network of the zoo, predict, prune, compare."""

from collections.abc import Sequence

import tyro

from jaxlimit.cli.errors import UsageError
from jaxlimit.lab.main_job import Config, start


def run(arguments: Sequence[str]) -> int:
    """Run the main job with its own options.

    Raises:
        UsageError: for a setting that cannot be.
    """
    try:
        config = tyro.cli(Config, args=list(arguments), prog="jaxlimit run")
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    start(config)
    return 0
