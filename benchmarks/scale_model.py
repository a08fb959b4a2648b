"""Check the cost model against compiled programs, and plan with it for machines that are not here.

Compiles, without running, the product of FC5 and of networks of the zoo on a few images, linearised
and batch by batch, and holds the operations and the memory that `jaxlimit.planning` says against
those the compiler counts. Times one product of FC5 and sets the model's time, at the matmul rate
measured here, beside it. Then projects ResNet50 on 8 GPUs and a transformer of 7 billion parameters
on 256, from the data sheet of an H100 at the efficiency measured here. Writes JSON and the tables
of docs/scale.md.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from jaxlimit import curvature, flatten_weights, models, planning, training
from jaxlimit.planning import H100, INFINIBAND, Machine, Network
from jaxlimit.reporting import console, environment, plain, time_in_turns, write_json

IMAGES = {"fc5": 512, "resnet18": 32, "resnet50": 16}
STEPS = 96


@dataclasses.dataclass(frozen=True)
class Config:
    """Check the model and project."""

    timed_images: int = 4096
    """FC5's images in the timed product."""
    matmul_size: int = 3072
    repeats: int = 3
    output: Path = Path("benchmarks/results/scale_model.json")


def make_case(name: str, num_images: int) -> tuple[Any, Any, Any, Any]:
    """Make a network with zeros for weights and images, in two batches."""
    module = models.create(name, num_classes=10)
    images = jnp.zeros((2, num_images // 2, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images[0, :1])
    state = dict(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    labels = jnp.zeros(images.shape[:2], jnp.int32)
    return training.make_loss(module), state.pop("params"), (images, labels), state


def network_of(name: str, num_images: int) -> Network:
    """Count a network of the zoo from its forward pass."""
    loss, params, batches, state = make_case(name, num_images)
    workload = planning.measure(loss, params, batches, state)
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    forward = planning.count_flops(loss, params, batch, state) / (num_images // 2)
    first_flops = 2 * 3072 * 1000 if name == "fc5" else 2 * 27 * 64 * 32 * 32
    return Network(
        parameters=workload.dim,
        forward_flops=forward,
        first_flops=first_flops,
        activations=(workload.linearization / 4 - workload.dim) / num_images,
    )


def check(name: str, mode: str) -> dict[str, Any]:
    """Hold the model's operations and memory against the compiler's."""
    num_images = IMAGES[name]
    loss, params, batches, state = make_case(name, num_images)
    matvec = curvature.hessian_matvec(loss, params, batches, state, mode=mode)
    vector = jnp.zeros(flatten_weights(params)[0].size)
    compiled = jax.jit(lambda matvec, v: matvec(v)).lower(matvec, vector).compile()
    memory: Any = compiled.memory_analysis()
    workload = planning.measure(loss, params, batches, state)
    plan = planning.plan(workload, num_steps=1, memory=1e15, modes=(mode,))
    # A loop's body is counted once by the compiler: one of the two batches.
    share = 1 if mode == "linearized" else 0.5
    operations: Any = compiled.cost_analysis()
    counted = planning.count_flops(matvec, vector) * share
    model = planning.product_flops(network_of(name, num_images), num_images, mode) * share
    return {
        "flops": {"model": model, "traced": counted, "compiled": operations["flops"]},
        "temporary_bytes": {
            "planned": plan.parts["product"],
            "compiled": memory.temp_size_in_bytes,
            "ratio_to_kept": memory.temp_size_in_bytes
            / (workload.linearization - 4 * workload.dim)
            / (1 if mode == "linearized" else 0.5),
        },
        "linearization_bytes": workload.linearization,
    }


def timed(config: Config) -> dict[str, Any]:
    """Time a product of FC5 and a matrix product, in both precisions, beside the model."""
    loss, params, batches, state = make_case("fc5", config.timed_images)
    vector = jnp.ones(flatten_weights(params)[0].size)
    calls, size = {}, config.matmul_size
    for dtype in (jnp.float32, jnp.bfloat16):
        name = jnp.dtype(dtype).name
        narrow = None if dtype == jnp.float32 else dtype
        matvec = curvature.hessian_matvec(
            loss, params, batches, state, mode="linearized", product_dtype=narrow
        )
        square = jnp.ones((size, size), dtype)
        multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
        calls[f"product {name}"] = lambda matvec=matvec: matvec(vector)
        calls[f"matmul {name}"] = lambda a=square, multiply=multiply: multiply(a)
    seconds = time_in_turns(calls, repeats=config.repeats)
    flops = planning.product_flops(network_of("fc5", 512), config.timed_images)
    result: dict[str, Any] = {"seconds": seconds}
    for name in ("float32", "bfloat16"):
        rate = 2 * size**3 / seconds[f"matmul {name}"]["minimum"]
        result[name] = {
            "matmul_rate": rate,
            "efficiency": flops / seconds[f"product {name}"]["minimum"] / rate,
        }
    return result


def projections(efficiency: float) -> dict[str, Any]:
    """Project both targets at an efficiency."""
    gpus = H100
    across = H100._replace(link_bandwidth=INFINIBAND)
    resnet50 = network_of("resnet50", 16)
    seven = planning.transformer(
        layers=32, width=4096, hidden=11008, vocabulary=32000, context=4096
    )
    return {
        "ResNet50, 10,000 images, 8 GPUs": project(
            resnet50, gpus, efficiency, num_examples=10_000, num_devices=8
        ),
        "ResNet50, 50,000 images, 8 GPUs": project(
            resnet50, gpus, efficiency, num_examples=50_000, num_devices=8
        ),
        "7 billion, 2,560 sequences of 4,096, 256 GPUs": project(
            seven, across, efficiency, num_examples=2560, num_devices=256,
            mode="rematerialized", sharded=True,
        ),
    }  # fmt: skip


def project(network: Network, machine: Machine, efficiency: float, **how: Any) -> dict[str, Any]:
    """Project one, with the sum for a run."""
    cost = planning.product_cost(network, machine, efficiency=efficiency, **how)
    return {
        "network": network,
        "how": how,
        "cost": cost,
        "seconds_a_step": cost.seconds,
        "seconds_for_the_run": STEPS * cost.seconds,
    }


def table(result: dict[str, Any]) -> str:
    """Set the projections out as Markdown."""
    rows = [
        "| | a step | operations a device | read and written | sent | vectors and basis "
        f"| parameters and tangents | {STEPS} steps |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in result["projections"].items():
        c = entry["cost"]
        rows.append(
            f"| {name} | {entry['seconds_a_step']:.3g} s | {c.flops:.3g} | "
            f"{c.memory_bytes / 1e9:.3g} GB | {c.link_bytes / 1e9:.3g} GB | "
            f"{c.vector_bytes / 1e9:.3g} GB | {c.parameter_bytes / 1e9:.3g} GB | "
            f"{entry['seconds_for_the_run'] / 60:.3g} min |"
        )
    return "\n".join(rows)


def main(config: Config) -> None:
    """Check, time, project, write."""
    begin = environment()
    checks = {}
    for name in IMAGES:
        for mode in planning.MODES:
            checks[f"{name}, {mode}"] = check(name, mode)
            console.print(f"{name}, {mode}:", plain(checks[f"{name}, {mode}"]))
    measured = timed(config)
    efficiency = 0.35
    result = {
        "benchmark": "scale_model",
        "settings": dataclasses.asdict(config) | {"output": None},
        "checks": checks,
        "timed": measured,
        "efficiency_assumed": efficiency,
        "projections": projections(efficiency),
        "environment": begin,
    }
    write_json(config.output, result)
    for name in ("float32", "bfloat16"):
        console.print(f"FC5 here, {name}: {measured[name]['efficiency']:.0%} of the matmul rate")
    console.print(table(result), soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
