"""The cost of a product and of a Lanczos step: operations, bytes, collectives and time."""

from typing import NamedTuple

from jaxlimit._core.checks import check_choice, check_count
from jaxlimit.lanczos import storage
from jaxlimit.planning import lanczos_bytes
from jaxlimit.planning.devices import Machine

COST_MODES = ("linearized", "forward-over-reverse", "rematerialized")

# How often weights and activations are read or written. A linearisation reads each factor, and
# writes and reads its tangent, forward and backward. Recomputed, weights are read both ways once
# more, activations and cotangents written and read; rematerialised, all goes forward again.
WEIGHT_PASSES: dict[str, int] = dict(zip(COST_MODES, (6, 8, 10), strict=True))
ACTIVATION_PASSES: dict[str, int] = dict(zip(COST_MODES, (6, 10, 14), strict=True))


class Network(NamedTuple):
    """The numbers of a network that decide the cost of a product.

    Attributes:
        parameters: numbers of them, all under study.
        forward_flops: operations of the matrix products of one example's forward pass, a
            multiply-add counted as two.
        first_flops: those of its first layer, whose inputs are data and have no tangent.
        activations: numbers an example that a linearisation keeps.
    """

    parameters: int
    forward_flops: float
    first_flops: float
    activations: float


class Cost(NamedTuple):
    """One Lanczos step, a product and its reorthogonalisation, on each of n devices.

    Attributes:
        flops: operations a device.
        memory_bytes: bytes that a device reads and writes.
        link_bytes: bytes that a device sends.
        compute_seconds: `flops` at the rate assumed.
        memory_seconds: `memory_bytes` at the bandwidth assumed.
        link_seconds: `link_bytes` at the bandwidth of the link.
        vector_bytes: memory of a device for Lanczos vectors and basis.
        parameter_bytes: memory of a device for the weights that it keeps.
        whole_bytes: memory of a device for what it has whole during a product: the vector, the
            result and, where they are split, the weights.
        activation_bytes: memory of a device for what a product keeps of the examples that it goes
            through at once, and for tangents beside it.
    """

    flops: float
    memory_bytes: float
    link_bytes: float
    compute_seconds: float
    memory_seconds: float
    link_seconds: float
    vector_bytes: float
    parameter_bytes: float
    whole_bytes: float
    activation_bytes: float

    @property
    def seconds(self) -> float:
        """Time of a step if nothing overlaps but computing with memory."""
        return max(self.compute_seconds, self.memory_seconds) + self.link_seconds

    @property
    def device_bytes(self) -> float:
        """Memory of a device for all of these together; the data come on top."""
        return self.vector_bytes + self.parameter_bytes + self.whole_bytes + self.activation_bytes


def product_flops(network: Network, num_examples: int, mode: str = "linearized") -> float:
    """Count the operations of the matrix products in one Hessian product.

    With F those of a forward pass and F₁ those of its first layer, the linear part takes
    2F - F₁ forward (the tangents of both factors, of the weights alone in the first layer) and
    4F - 3F₁ backward (two factors, each with its tangent, for the weights and for the inputs, in
    the first layer one product in all). Recomputed, the forward pass and the backward pass to the
    activations come on top, 2F - F₁ (where activations are piecewise linear, without the second
    layer's backward one); rematerialised block by block, another forward pass with its
    tangents, 3F - F₁.

    Args:
        network: its numbers.
        num_examples: N, those that the product is over.
        mode: "linearized", "forward-over-reverse", or "rematerialized", the latter with its
            activations made again, block by block (`jax.checkpoint` around each block of the loss).

    Raises:
        ValueError: if `mode` is unknown, or `num_examples` below 1.

    >>> product_flops(Network(6, 12.0, 12.0, 5), num_examples=10)
    240.0
    """
    check_choice("mode", mode, COST_MODES)
    check_count("num_examples", num_examples)
    whole, first = network.forward_flops, network.first_flops
    total = 6 * whole - 4 * first
    if mode != "linearized":
        total += 2 * whole - first
    if mode == "rematerialized":
        total += 3 * whole - first
    return num_examples * total


def derated(machine: Machine, efficiency: float) -> Machine:
    """Return a machine at a share of its arithmetic speed and memory bandwidth.

    >>> derated(Machine(1e12, 1e11, 1e10, 1e10), 0.5)[:2]
    (500000000000.0, 50000000000.0)
    """
    return machine._replace(
        flops=machine.flops * efficiency, memory_bandwidth=machine.memory_bandwidth * efficiency
    )


def product_cost(
    network: Network,
    machine: Machine,
    *,
    num_examples: int,
    num_steps: int,
    num_devices: int = 1,
    mode: str = "forward-over-reverse",
    sharded: bool = False,
    passes: int = 1,
    product_bytes: int = 4,
    reorthogonalize: str = "auto",
) -> Cost:
    """Model one Lanczos step on a mesh: examples split, vectors and basis split along D.

    A product gathers the vector, and reduces and scatters the result, D entries in float32 each:
    together the traffic of one all-reduce. Where parameters are split, they are gathered too, all
    D of them at once (`shard_params` of `curvature.MatvecSettings`).

    Args:
        network: its numbers.
        machine: those of a device; see `derated` for one that does not reach its peak.
        num_examples: examples in all.
        num_steps: Lanczos steps of the run, whose basis is held.
        num_devices: n.
        mode: see `product_flops`.
        sharded: whether parameters are split over the devices too.
        passes: shares that a device's examples are gone through in, 1 for a linearisation.
        product_bytes: bytes of a number in the products: 4, or 2 where they are in bfloat16.
        reorthogonalize: see `spectrum.spectral_measure`.

    Raises:
        ValueError: if a count is below 1, or a name is unknown.

    >>> one = Network(10**6, 2e6, 0.0, 1e4)
    >>> machine = Machine(1e12, 1e11, 1e10, 1e10)
    >>> cost = product_cost(one, machine, num_examples=1000, num_steps=96, num_devices=2)
    >>> cost.flops, cost.link_bytes
    (8000000000.0, 4000000.0)
    """
    check_count("num_devices", num_devices)
    check_count("passes", passes)
    flops = product_flops(network, num_examples, mode) / num_devices
    dim, share = network.parameters, (num_devices - 1) / num_devices
    kind = storage.choose(reorthogonalize, check_count("num_steps", num_steps))
    rows = storage.NUM_LOCKED if kind == "selective" else storage.num_rows(num_steps, kind)
    # The basis is read twice, for the coefficients and for the sum; a step's other vectors are few.
    vectors = (8 + 2 * rows) * 4 * dim / num_devices
    kept = product_bytes * network.activations * num_examples / num_devices
    weights = WEIGHT_PASSES[mode] * product_bytes * dim * passes
    memory = vectors + weights + ACTIVATION_PASSES[mode] * kept
    link = share * dim * (12 if sharded else 8)
    return Cost(
        flops=flops,
        memory_bytes=memory,
        link_bytes=link,
        compute_seconds=flops / machine.flops,
        memory_seconds=memory / machine.memory_bandwidth,
        link_seconds=link / machine.link_bandwidth,
        vector_bytes=lanczos_bytes(dim, 4, num_steps, reorthogonalize=kind) / num_devices,
        parameter_bytes=4 * dim / (num_devices if sharded else 1),
        whole_bytes=dim * (12 if sharded else 8),
        activation_bytes=2 * kept / passes,
    )


def transformer(*, layers: int, width: int, hidden: int, vocabulary: int, context: int) -> Network:
    """Count a decoder of gated blocks (four width², three width·hidden) over one sequence.

    The embedding is a look-up, so no matrix product is without a tangent at its input. What is
    kept are the inputs of every product and the attention weights' factors, recomputed inside a
    block from its input, so one input a block stays. Scales of norms are left out.

    Args:
        layers: blocks.
        width: numbers a token between blocks, the heads' together.
        hidden: those of a block's gated layer.
        vocabulary: rows of the embedding and of the output matrix, which are two.
        context: tokens of a sequence, all of which every token is multiplied with (a mask saves
            no operations).

    Raises:
        ValueError: if a count is below 1.

    >>> net = transformer(layers=32, width=4096, hidden=11008, vocabulary=32000, context=4096)
    >>> round(net.parameters / 1e9, 2)
    6.74
    """
    counts = {"layers": layers, "width": width, "hidden": hidden, "vocabulary": vocabulary}
    for name, count in (counts | {"context": context}).items():
        check_count(name, count)
    block = 4 * width**2 + 3 * width * hidden
    matrices = layers * block + width * vocabulary
    attention = 4 * layers * context**2 * width
    return Network(
        parameters=matrices + width * vocabulary,
        forward_flops=2.0 * matrices * context + attention,
        first_flops=0.0,
        activations=float(layers * context * width),
    )
