"""Several processes as one job, by `jax.distributed`: start together, write once, end together."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxlimit._core.checks import check_count

HEARTBEAT_SECONDS = 20
START_SECONDS = 120


@contextmanager
def job(
    enabled: bool = True, *, resume: str = "", start_seconds: int = START_SECONDS
) -> Iterator[None]:
    """Run the body as part of a job of several processes, which all end if one fails.

    The processes find each other by `JAX_COORDINATOR_ADDRESS` (host:port of process 0),
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or by what SLURM, Open MPI or Kubernetes set, as
    `jax.distributed.initialize` has it. An error in one process, or its death, ends the others:
    at once where they wait for it in a collective, within some 20 seconds elsewhere.

    Where JAX itself ends a process, because another one died or did not start in time, it prints
    its own message ("another task died", "DEADLINE_EXCEEDED") and aborts.

    Args:
        enabled: False runs the body alone.
        resume: advice on how to continue the work, for the message of a failure.
        start_seconds: how long each process waits for the others to start.

    Raises:
        RuntimeError: if the environment does not describe a job; names the variable.
        ValueError: if `start_seconds` is below 1.

    >>> with job(enabled=False):
    ...     is_first()
    True
    """
    if not enabled:
        yield
        return
    _start(resume, check_count("start_seconds", start_seconds))
    try:
        yield
    except BaseException as error:
        _end(error, resume)
    multihost_utils.sync_global_devices("end of the job")
    jax.distributed.shutdown()


def is_first() -> bool:
    """Return whether this process is the one that writes files and prints.

    >>> if is_first():
    ...     print("done")
    done
    """
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have reached this call; return at once if there is only one.

    Args:
        name: the same in all of them.

    >>> barrier("everything is written")
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_devices() -> Mesh | None:
    """Return a mesh of one axis over the devices of all processes; None for a single device.

    >>> mesh = all_devices()
    >>> mesh is None or mesh.axis_names == ("data",)
    True
    """
    devices = np.asarray(jax.devices())
    return Mesh(devices, ("data",)) if devices.size > 1 else None


def _start(resume: str, start_seconds: int) -> None:
    named = _described()
    processes = f"all {named['num_processes']}" if "num_processes" in named else "all"
    # Printed now, since JAX ends a process without Python if others die or never start.
    print(
        f"waiting up to {start_seconds} s for {processes} processes of the job to begin at "
        f"{os.environ.get('JAX_COORDINATOR_ADDRESS', 'the place that the cluster names')}; "
        f"if one dies, all end. {resume}",
        file=sys.stderr,
        flush=True,
    )
    try:
        jax.distributed.initialize(
            **named,
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        raise RuntimeError(
            "the job did not start; its environment must be described by JAX_COORDINATOR_ADDRESS, "
            f"JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by SLURM: {error}"
        ) from error


def _described() -> dict[str, Any]:
    """Read what the environment itself says of the number of processes and this one's place."""
    found: dict[str, Any] = {}
    for name in ("num_processes", "process_id"):
        variable = f"JAX_{name.upper()}"
        if (text := os.environ.get(variable)) is None:
            continue
        if not text.strip().isdecimal():
            raise RuntimeError(f"{variable} must be an integer, at least 0, got {text!r}")
        found[name] = int(text)
    if len(found) == 2 and found["process_id"] >= found["num_processes"]:
        raise RuntimeError(
            f"JAX_PROCESS_ID must be below JAX_NUM_PROCESSES {found['num_processes']}, "
            f"got {found['process_id']}"
        )
    return found


def _end(error: BaseException, resume: str) -> None:
    """Print why, and exit without the orderly shutdown, which would wait for lost processes."""
    traceback.print_exception(error)
    print(
        f"process {jax.process_index()} of {jax.process_count()} ends the job: "
        f"{type(error).__name__} above, its own or because another process died. {resume}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
