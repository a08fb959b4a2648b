"""What fits on a device: a linearisation or one batch at a time, and the place of the basis."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jaxlimit import lanczos
from jaxlimit._core.checks import check_choice, check_count, check_range
from jaxlimit._core.memory import host_memory
from jaxlimit.lanczos import storage
from jaxlimit.lanczos._basis import BLOCK
from jaxlimit.planning.devices import usable_memory
from jaxlimit.planning.workload import MODES, Workload

USABLE = 0.9  # of a device's memory: what allocators, code and fragments leave

# Vectors of Lanczos besides the basis: two of the state, before and after a chunk, the product, the
# residual and scratch; from the compiled program.
NUM_VECTORS = 7
# A product's own temporaries, as a multiple of what a linearisation of the same examples keeps.
# Compiled on a CPU it is 0.36 to 0.67 for ResNets (benchmarks/results/scale_model.json); a GPU's
# convolutions take scratch space.
TEMPORARIES = 1.0

# In accuracy, against full reorthogonalisation in float32, measured on FC5 on digits at depth 128
# (benchmarks/results/basis_storage_digits.json).
REORTHOGONALIZATION_COSTS = {
    "full": "",
    "selective": "ρ* moves by 4e-4 of itself, its interval is a fifth wider at the same depth",
    "none": "ρ* moves by 3e-3 of itself, its interval is twice as wide at the same depth",
}
STORE_COSTS = {
    "device": "",
    "bfloat16": "λ_max moves by 4e-7 of itself",
    "pinned_host": "the basis crosses to the device at every step",
}


class Plan(NamedTuple):
    """The plan of a run.

    Attributes:
        fits: whether it fits into `limit`; if not, this is the lightest plan.
        mode: mode of the product, "linearized" or "forward-over-reverse".
        pieces: number of pieces that each batch is cut into; 1 leaves batches as they are.
        reorthogonalize: "selective", "full" or "none".
        store: place of the basis, "device", "bfloat16" or "pinned_host".
        parts: bytes on the device, by purpose.
        host_bytes: bytes in pinned host memory.
        limit: bytes available on the device.
        reasons: sentences on why this plan was chosen, and its drawbacks.
    """

    fits: bool
    mode: str
    pieces: int
    reorthogonalize: str
    store: str
    parts: dict[str, int]
    host_bytes: int
    limit: int
    reasons: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes on the device at the worst moment."""
        return sum(self.parts.values())


def plan(
    workload: Workload,
    *,
    num_steps: int,
    num_probes: int = 1,
    reorthogonalize: str = "auto",
    memory: float | None = None,
    modes: tuple[str, ...] = MODES,
    stores: tuple[str, ...] = (*lanczos.STORES, "none"),
) -> Plan:
    """Choose the fastest and most exact way to measure a spectrum that fits in memory.

    Tries in turn: linearised, with the basis on the device, in bfloat16, in pinned host memory;
    then the same batch by batch, with batches halved as often as necessary; finally without a
    basis. If "auto" means "full", "selective" is also tried, before the basis goes to the host.

    Args:
        workload: from `measure`, or your own.
        num_steps: Lanczos steps.
        num_probes: probes, whose bases exist at the same time.
        reorthogonalize: see `spectrum.spectral_measure`.
        memory: bytes of the device, of which nine tenths are used; by default those that the device
            reports. On a CPU, a basis in pinned host memory counts too.
        modes: modes of the product to choose from.
        stores: places for the basis to choose from; "none" allows a run without a basis.

    Returns:
        A `Plan`; if nothing fits, `fits` is False and the reasons say what would help.

    Raises:
        ValueError: if a count is below 1, or a name is unknown.

    >>> chosen = plan(Workload(10**6, 4, 10**8, 10**9, 1000, 100), num_steps=64, memory=8e9)
    >>> chosen.fits, chosen.mode, chosen.store, chosen.parts["basis"]
    (True, 'linearized', 'device', 256000000)
    """
    check_count("num_steps", num_steps)
    check_count("num_probes", num_probes)
    kinds = (storage.choose(reorthogonalize, num_steps),)
    if reorthogonalize == "auto" and kinds == ("full",):
        kinds = ("full", "selective")
    for mode in modes:
        check_choice("modes", mode, MODES)
    for store in stores:
        check_choice("stores", store, (*lanczos.STORES, "none"))
    is_host = memory is None and jax.local_devices()[0].platform == "cpu"
    memory = usable_memory() if memory is None else memory
    check_range("memory", float(memory), 0, open_low=True)
    limit = int(USABLE * memory)
    options = list(_options(workload, num_steps, num_probes, kinds, limit, is_host, modes, stores))
    fitting = [option for option in options if option.fits]
    best = fitting[0] if fitting else min(options, key=lambda option: option.total)
    return best._replace(reasons=_reasons(best, options[0], num_probes))


def lanczos_bytes(
    dim: int, itemsize: int, num_steps: int, store: str = "device", reorthogonalize: str = "auto"
) -> int:
    """Count the device memory of one Lanczos run: vectors, basis and work space.

    Args:
        dim: D, the entries of a vector.
        itemsize: bytes of one entry.
        num_steps: Lanczos steps.
        store: where the basis is kept, one of `lanczos.STORES`.
        reorthogonalize: see `spectrum.spectral_measure`.

    Returns:
        The bytes.

    Raises:
        ValueError: if `num_steps` is below 1, or a name is unknown.

    >>> lanczos_bytes(1, 4, 96) // 4, lanczos_bytes(1, 4, 1000) // 4
    (207, 175)
    """
    check_choice("store", store, lanczos.STORES)
    kind = storage.choose(reorthogonalize, check_count("num_steps", num_steps))
    workload = Workload(dim, itemsize, 0, 0, 1, 1)
    resident, working, _ = _basis_bytes(workload, num_steps, kind, store)
    return NUM_VECTORS * dim * itemsize + resident + working


def lighter(failed: Plan, workload: Workload, *, num_steps: int, **settings: Any) -> Plan:
    """Plan again after a device ran out of memory, with 0.7 of the total of the failed plan.

    Args:
        failed: the plan that did not fit.
        workload: see `plan`.
        num_steps: see `plan`.
        **settings: further settings of `plan`.

    Returns:
        The lighter `Plan`.

    >>> workload = Workload(10**6, 4, 10**8, 10**9, 1000, 100)
    >>> first = plan(workload, num_steps=64, memory=8e9)
    >>> lighter(first, workload, num_steps=64).mode
    'forward-over-reverse'
    """
    settings["memory"] = 0.7 * failed.total / USABLE
    return plan(workload, num_steps=num_steps, **settings)


def describe(plan: Plan) -> str:
    """Describe a plan in lines: where everything goes, the total, and the reasons.

    Args:
        plan: the plan.

    Returns:
        The text.

    >>> workload = Workload(10**6, 4, 10**8, 10**9, 1000, 100)
    >>> print(describe(plan(workload, num_steps=64, memory=8e9)).splitlines()[0])
    product linearized, reorthogonalisation full, basis in device
    """
    rows = [*plan.parts.items(), ("in all", plan.total), ("to be had", plan.limit)]
    if plan.host_bytes:
        rows.append(("pinned on the host", plan.host_bytes))
    return "\n".join(
        [
            f"product {plan.mode}, reorthogonalisation {plan.reorthogonalize}, "
            f"basis in {'no memory' if plan.reorthogonalize == 'none' else plan.store}",
            *(f"{name:<22}{_gib(size):>12}" for name, size in rows),
            *(f"note: {reason}" for reason in plan.reasons),
        ]
    )


def _options(
    workload, num_steps, num_probes, kinds, limit, is_host, modes, stores
) -> Iterator[Plan]:
    num_steps = min(num_steps, workload.dim)
    on_device = [store for store in stores if store in ("device", "bfloat16")]
    on_host = [store for store in stores if store == "pinned_host"]
    places = [(s, kind) for some in (on_device, on_host) for kind in kinds for s in some]
    ways = [(mode, *place) for mode in modes for place in places if kinds != ("none",)]
    if "none" in stores or not ways:
        ways += [(mode, "device", "none") for mode in modes]
    for mode, store, kind in ways:
        resident, working, on_host = _basis_bytes(workload, num_steps, kind, store)
        for pieces in _cuts(workload.batch_size) if mode == MODES[1] else (1,):
            parts = {
                "parameters and data": workload.held,
                **_product_bytes(workload, mode, pieces),
                "Lanczos vectors": NUM_VECTORS * workload.dim * workload.itemsize
                + 2 * (num_probes - 1) * workload.dim * workload.itemsize,
                "basis": resident * num_probes,
                "work on the basis": working,
            }
            total, pinned = sum(parts.values()), on_host * num_probes
            room = limit - total if is_host else host_memory() or float("inf")
            # Beside all bases there is the one that a chunk of steps starts from; half of a CPU's
            # memory is left for the copies that checkpoints make, a host's has to hold them too.
            copies = on_host if is_host else on_host + pinned
            fits = total <= limit and pinned + copies <= room
            yield Plan(fits, mode, pieces, kind, store, parts, pinned, limit, reasons=())


def _cuts(batch_size: int) -> list[int]:
    return [2**i for i in range(batch_size.bit_length()) if batch_size % 2**i == 0]


def _product_bytes(workload: Workload, mode: str, pieces: int) -> dict[str, int]:
    vectors, kept = 3 * workload.dim * workload.itemsize, workload.linearization
    if mode == "linearized":
        return {"linearisation": kept, "product": int(TEMPORARIES * kept) + vectors}
    share = workload.batch_size / pieces / workload.num_examples
    return {"product": int(TEMPORARIES * kept * share) + vectors}


def _basis_bytes(
    workload: Workload, num_steps: int, reorthogonalize: str, store: str
) -> tuple[int, int, int]:
    """Count the bytes of a basis, of the work on it during a chunk of steps, and on the host.

    A chunk of steps keeps the state that it starts from, so nothing is lost if it fails: the basis
    exists twice.
    """
    if reorthogonalize == "none":
        return 0, 0, 0
    selective = reorthogonalize == "selective"
    rows = storage.num_rows(num_steps, reorthogonalize)
    entry, dim = workload.itemsize, workload.dim
    kept = rows * dim * (2 if store == "bfloat16" else entry)
    scratch = (3 if selective else 1) * BLOCK * dim * entry
    if store == "pinned_host":
        return 0, scratch, kept
    return kept, kept + scratch, 0


def _reasons(chosen: Plan, first: Plan, num_probes: int) -> tuple[str, ...]:
    if not chosen.fits:
        largest = max(chosen.parts, key=lambda name: chosen.parts[name])
        advice = {
            "parameters and data": "take fewer examples, or spread them over a mesh",
            "linearisation": "leave mode at 'auto'",
            "product": "make batches smaller, or spread them over a mesh",
            "Lanczos vectors": "take fewer probes, or spread the vectors over a mesh",
            "basis": "take fewer probes or steps, or allow store='pinned_host'",
            "work on the basis": "allow store='bfloat16' or 'pinned_host'",
        }[largest]
        return (
            f"nothing fits: even the lightest way takes {_gib(chosen.total)} of "
            f"{_gib(chosen.limit)}, most of it for {largest} ({_gib(chosen.parts[largest])}): "
            f"{advice}",
        )
    costs = [REORTHOGONALIZATION_COSTS[chosen.reorthogonalize]]
    costs += [] if chosen.reorthogonalize == "none" else [STORE_COSTS[chosen.store]]
    costs = list(filter(None, costs))
    reasons = [f"what that costs: {', '.join(costs)}"] if costs else []
    if chosen[1:5] != first[1:5]:
        reasons.insert(
            0,
            f"the first choice, {first.mode}, reorthogonalisation {first.reorthogonalize} with the "
            f"basis in {first.store} memory, would take {_gib(first.total)} of {_gib(first.limit)}",
        )
    if chosen.pieces > 1:
        reasons.append(f"each batch is cut into {chosen.pieces}")
    if num_probes > 1 and chosen.parts["basis"]:
        reasons.append(f"{num_probes} probes hold a basis each")
    return tuple(reasons)


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
