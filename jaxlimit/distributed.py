"""Several processes as one job, by `jax.distributed`: begin together, write once, end together."""

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

HEARTBEAT_SECONDS = 20
START_SECONDS = 120


@contextmanager
def job(enabled: bool = True, *, resume: str = "") -> Iterator[None]:
    """Make the body part of a job of several processes, which all end if one does.

    The processes find each other by `JAX_COORDINATOR_ADDRESS` (host:port of process 0),
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or by what SLURM, Open MPI or Kubernetes set, as
    `jax.distributed.initialize` has it. An error in one process, or its death, ends the others:
    at once where they wait for it in a collective, within some 20 seconds elsewhere.

    Args:
        enabled: False makes the body an ordinary one.
        resume: what to say about taking the work up again.

    Raises:
        RuntimeError: if not all processes came within two minutes, or the environment does not
            describe a job.
    """
    if not enabled:
        yield
        return
    _start()
    try:
        yield
    except BaseException as error:
        _end(error, resume)
    multihost_utils.sync_global_devices("end of the job")
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have come here; nothing where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_devices() -> Mesh | None:
    """Return a mesh of one axis over the devices of all processes, None where there is but one."""
    devices = np.asarray(jax.devices())
    return Mesh(devices, ("data",)) if devices.size > 1 else None


def _start() -> None:
    names = ("num_processes", "process_id")
    given = {name: os.environ.get(f"JAX_{name.upper()}") for name in names}
    named: dict[str, Any] = {name: int(value) for name, value in given.items() if value is not None}
    try:
        jax.distributed.initialize(
            **named,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        raise RuntimeError(
            f"the job did not start: not all of its processes came within {START_SECONDS} s, or "
            "the environment names none (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            f"JAX_PROCESS_ID, or SLURM's): {error}"
        ) from error


def _end(error: BaseException, resume: str) -> None:
    """Say why, and go without the orderly shutdown, which would wait for those who are gone."""
    traceback.print_exception(error)
    print(
        f"process {jax.process_index()} of {jax.process_count()} ends the job: "
        f"{type(error).__name__} above, its own or because another process died. {resume}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
