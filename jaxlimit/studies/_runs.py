"""Lanczos runs on the Hessian of one loss, planned for the memory there is."""

import gc
from typing import Any, cast

import jax
from jaxtyping import PRNGKeyArray

from jaxlimit import curvature, planning, spectrum
from jaxlimit._core.batches import cut_batches
from jaxlimit._core.memory import DeviceMemoryError, catching_refusals
from jaxlimit.spectrum import SpectralMeasure


class PlannedRuns:
    """Lanczos on one Hessian as planned; planned again if the device runs out of memory."""

    def __init__(
        self, operator: tuple, plan_settings: dict[str, Any], *, cuttable: bool = True
    ) -> None:
        """Plan the runs.

        Args:
            operator: loss, parameters, batches, operands, selector and settings of the product.
            plan_settings: of `planning.plan`.
            cuttable: whether the loss is a mean over examples, so that batches may be cut.
        """
        loss, params, batches, operands, where, settings = operator
        self._cuttable = cuttable
        self._operator, self._matvec = operator, cast(Any, None)
        self._workload, ways = planning.prepare(
            loss, params, batches, *operands, where=where, **settings
        )
        self._plan_settings: dict[str, Any] = plan_settings | ways
        self._plan = self._affordable(planning.plan(self._workload, **self._plan_settings))
        self.notes: tuple[str, ...] = ()

    def run(self, key: PRNGKeyArray, mask: Any = None, **how: Any) -> SpectralMeasure:
        """Run the probes, on the principal submatrix where `mask` is True if it is given."""
        states: tuple = ()
        while True:
            try:
                return self._attempt(key, mask, states, how)
            except DeviceMemoryError as error:
                states, refusal = error.states, str(error)
            self._plan_again(refusal, states)

    def _attempt(self, key, mask, states, how) -> SpectralMeasure:
        loss, params, batches, operands, where, settings = self._operator
        with catching_refusals("while the Hessian was linearised", states):
            if self._matvec is None:
                self._matvec = curvature.hessian_matvec(
                    loss,
                    params,
                    cut_batches(batches, self._plan.pieces),
                    *operands,
                    where=where,
                    **settings | self._way(settings.get("mode", "auto")),
                )
                jax.block_until_ready(jax.tree.leaves(self._matvec))
        matvec = self._matvec if mask is None else curvature.restrict(self._matvec, mask)
        kept = {"reorthogonalize": self._plan.reorthogonalize, "store": self._plan.store}
        kept["mesh"] = settings["mesh"]
        return spectrum.run_probes(matvec, key, states=states, **kept, **how)

    def _way(self, asked: str) -> dict[str, Any]:
        """Return the settings of the product as planned, in a mode that the loss supports."""
        if self._plan.mode == "linearized":
            return {"mode": "linearized"}
        return {"mode": asked, "memory_budget": 0}

    def _plan_again(self, refusal: str, states: tuple) -> None:
        # The old product must be freed before a lighter one is made, also from reference cycles.
        self._matvec = None
        gc.collect()
        if self.notes:
            raise MemoryError(f"{refusal}, also with the second, lighter plan: {self.notes[0]}")
        settings: dict[str, Any] = self._plan_settings
        if any(int(state.step) for state in states):
            kind, store = self._plan.reorthogonalize, self._plan.store
            settings = settings | {"stores": (store,), "reorthogonalize": kind}
        lighter = planning.lighter(self._plan, self._workload, **settings)
        self._plan = self._affordable(lighter, refusal)
        self.notes = (
            f"the device ran out of memory; the run went on from its last steps {lighter.mode}"
            f"{f', batches cut into {lighter.pieces}' if lighter.pieces > 1 else ''}",
        )

    def _affordable(self, plan: planning.Plan, refusal: str = "") -> planning.Plan:
        if not plan.fits:
            raise MemoryError("; ".join(filter(None, (refusal, *plan.reasons))))
        if plan.pieces > 1 and not self._cuttable:
            raise MemoryError(
                f"the run fits where batches are cut into {plan.pieces}, which would change a loss "
                "that is no mean over examples: give smaller batches, or more memory"
            )
        return plan
