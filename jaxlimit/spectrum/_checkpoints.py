"""The recurrences of a run on a mesh, kept by Orbax: every process writes its own part."""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxlimit import lanczos
from jaxlimit._checkpoints import Checkpoints
from jaxlimit.lanczos import LanczosState


class MeshCheckpoints(contextlib.closing):
    """Keep the states of a run on a mesh; without a mesh or a folder, nothing.

    Args:
        directory: where, None for nowhere.
        every: steps between them.
        key: of the probes.
        states: those of the run at its start.
        reorthogonalize: of the run.
        mesh: None for nowhere.
    """

    def __init__(
        self,
        directory: Any,
        every: int,
        key: PRNGKeyArray,
        states: list[LanczosState],
        reorthogonalize: str,
        mesh: Mesh | None,
    ) -> None:
        first = states[0]
        self._checkpoints = Checkpoints(
            None if mesh is None else directory,
            every,
            lambda: {
                "dim": int(first.dim),
                "padded_dim": first.current.size,
                "dtype": str(first.current.dtype),
                "stored": None if first.basis is None else str(first.basis.dtype),
                "key": np.asarray(jax.random.key_data(key)).tolist(),
                "num_steps": first.diagonal.size,
                "num_probes": len(states),
                "reorthogonalize": reorthogonalize,
            },
            unit="step",
        )
        super().__init__(self._checkpoints)

    def restore(self, matvec: Any, states: list[LanczosState]) -> list[LanczosState]:
        """Return the states found, or those given.

        Raises:
            ValueError: if those found are of another run or operator.
        """
        found = self._checkpoints.restore(lambda _: _arrays(states))
        if found is None:
            return states
        resumed = [state._replace(**found[str(i)]) for i, state in enumerate(states)]
        first = lanczos.extend(matvec, states[0], num_steps=1, reorthogonalize="none")
        now, then = float(first.off_diagonal[0]), float(resumed[0].off_diagonal[0])
        if not abs(now - then) <= 1e-3 * then:
            raise ValueError(
                f"checkpoint {self._checkpoints.directory} holds the recurrence of another "
                f"operator: its first step gave {then:.6g}, that of this one gives {now:.6g}"
            )
        return resumed

    def save(self, done: int, states: list[LanczosState], *, last: bool) -> None:
        """Save the states if their turn has come."""
        self._checkpoints.save(done, _arrays(states), last=last)


def _arrays(states: list[LanczosState]) -> dict[str, dict]:
    """Return the states as the dictionaries that a checkpoint holds."""
    return {
        str(i): {name: value for name, value in state._asdict().items() if value is not None}
        for i, state in enumerate(states)
    }
