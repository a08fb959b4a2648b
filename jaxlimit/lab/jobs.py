"""How a script starts, and how it locks its run folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax

from jaxlimit import distributed
from jaxlimit._core.locks import hold
from jaxlimit.lab.console import console


def start(main: Callable[[], None], *, several: bool) -> None:
    """Run `main` alone, or as one of `several` processes, of which the first prints and writes."""
    resume = "The same command again goes on from the newest checkpoints in the run folder."
    with distributed.job(several, resume=resume):
        console.quiet = not distributed.is_first()
        main()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make a run's folder and lock it while the body runs; the first process locks it for a job.

    Raises:
        InUseError: if another run is using it; says which process and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder) if jax.process_index() == 0 else nullcontext():
        yield
