"""How a script starts, and how it locks its run folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from jaxlimit import distributed
from jaxlimit._core.locks import made_and_held
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

    A folder that was made here and stays empty is removed again.

    Raises:
        InUseError: if another run is using it; says which process and since when.
        NotADirectoryError: if there is a file in its place or above it.
        OSError: if it cannot be made or written to.
    """
    if jax.process_index() > 0:
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    with made_and_held(folder):
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"folder {folder} must be writable, and it is not")
        yield
