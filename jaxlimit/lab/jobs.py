"""How a script starts, and how it has its run folder alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax

from jaxlimit import distributed
from jaxlimit._core.locks import hold
from jaxlimit.lab.console import console


def start(main: Callable[[], None], *, several: bool) -> None:
    """Run `main` alone, or as one of `several` processes, the first of which speaks and writes."""
    resume = "The same command again goes on from the newest checkpoints in the run folder."
    with distributed.job(several, resume=resume):
        console.quiet = not distributed.is_first()
        main()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make a run's folder, and have it alone while the body runs, the job's first process for all.

    Raises:
        InUseError: if another run is at work in it; says which process and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder) if jax.process_index() == 0 else nullcontext():
        yield
