"""Check the cost model against compiled programs, and plan with it for machines that are not here.

Compiles, without running, the product of FC5 and of networks of the zoo on a few images, linearised
and batch by batch, and holds operations, memory and traffic as `jaxlimit.planning` has them against
what the compiler counts. Times one product of FC5 beside a matrix product. Then projects
ResNet50 on 8 and 32 GPUs and a transformer of 7 billion parameters on 256, from the data sheet of
an H100 at a share of it that is assumed. Writes JSON and the tables of docs/scale.md.
"""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from jaxlimit import curvature, flatten_weights, models, planning, training
from jaxlimit.lab import cost as cost_model
from jaxlimit.lab import pages
from jaxlimit.lab.console import console
from jaxlimit.lab.content import plain, write_json
from jaxlimit.lab.cost import Network
from jaxlimit.lab.environment import environment
from jaxlimit.lab.pages import scale
from jaxlimit.lab.timing import time_in_turns
from jaxlimit.planning import H100, H100_FLOPS, INFINIBAND, Machine

ROOT = Path(__file__).parents[1]
IMAGES = {"fc5": 512, "resnet18": 32, "resnet50": 8}
STEPS = 128
MODES = planning.MODES
LINEAR = MODES[0]
EFFICIENCY = 0.35  # of a GPU's data sheet: the bar for ResNet18's product, not a measurement


@dataclasses.dataclass(frozen=True)
class Config:
    """Check the model and project."""

    timed_images: int = 4096
    """FC5's images in the timed product."""
    matmul_size: int = 3072
    repeats: int = 3
    output: Path = Path("benchmarks/results/scale_model.json")


def make_case(name: str, num_images: int) -> tuple[Any, ...]:
    """Make a network's loss, and the shapes of parameters, two batches and state."""
    module = models.create(name, num_classes=10)
    images = jax.ShapeDtypeStruct((2, num_images // 2, 32, 32, 3), jnp.float32)
    state = dict(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    labels = jax.ShapeDtypeStruct(images.shape[:2], jnp.int32)
    return training.make_loss(module), state.pop("params"), (images, labels), state


@cache
def network_of(name: str) -> Network:
    """Count a network of the zoo from its forward pass and its linearisation."""
    loss, params, batches, state = make_case(name, IMAGES[name])
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)
    dim = jax.eval_shape(lambda p: flatten_weights(p)[0], params).size
    return Network(
        parameters=dim,
        forward_flops=planning.count_flops(loss, params, batch, state) / (IMAGES[name] // 2),
        first_flops=2 * 3072 * 1000 if name == "fc5" else 2 * 27 * 64 * 32 * 32,
        activations=linearization(name) / 4 / IMAGES[name],
    )


@cache
def linearization(name: str, product_dtype: Any = None) -> int:
    """Count the bytes that a linearisation on the images keeps."""
    leaves = jax.tree.leaves(operator(name, LINEAR, product_dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def operator(name: str, mode: str, product_dtype: Any = None) -> Any:
    """Make the product's shapes: nothing of it runs."""
    loss, *rest = make_case(name, IMAGES[name])

    def make(params, batches, state):
        settings = {"mode": mode, "product_dtype": product_dtype}
        return curvature.hessian_matvec(loss, params, batches, state, **settings)

    return jax.eval_shape(make, *rest)


def check(name: str, mode: str) -> dict[str, Any]:
    """Hold the model's operations and memory against the compiler's."""
    network, matvec = network_of(name), operator(name, mode)
    vector = jax.ShapeDtypeStruct((network.parameters,), jnp.float32)
    apply = lambda matvec, vector: matvec(vector)  # noqa: E731
    compiled = jax.jit(apply).lower(matvec, vector).compile()
    memory: Any = compiled.memory_analysis()
    operations: Any = compiled.cost_analysis()
    # A loop's body is counted once by the compiler, and holds memory once: one of two batches.
    share = 1 if mode == LINEAR else 0.5
    kept, images = linearization(name), IMAGES[name]
    dim, counted = network.parameters, int(images * share)
    workload = planning.Workload(dim, 4, 0, kept, images, images // 2)
    settings = {"mode": mode, "num_steps": 1, "reorthogonalize": "none"}
    step = cost_model.product_cost(network, H100, num_examples=counted, **settings)
    plan = planning.plan(workload, num_steps=1, memory=1e15, modes=(mode,))
    return {
        "flops": {
            "model": cost_model.product_flops(network, images, mode) * share,
            "traced": planning.count_flops(apply, matvec, vector) * share,
            "compiled": operations["flops"],
        },
        "temporary_bytes": {
            "planned": plan.parts["product"],
            "compiled": memory.temp_size_in_bytes,
            "ratio_to_kept": (memory.temp_size_in_bytes - 12 * dim) / kept / share,
        },
        "read_and_written_bytes": {
            "model": step.memory_bytes - 8 * 4 * dim,  # without Lanczos's own vectors
            "compiled": operations["bytes accessed"],
        },
        "linearization_bytes": kept,
    }


def timed(config: Config) -> dict[str, Any]:
    """Time a product of FC5 and a matrix product, in both precisions, beside the model."""
    loss, *shapes = make_case("fc5", config.timed_images)
    ones = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), shapes)
    vector = jnp.ones(network_of("fc5").parameters)
    calls, size = {}, config.matmul_size
    for dtype in (jnp.float32, jnp.bfloat16):
        name = jnp.dtype(dtype).name
        narrow = None if dtype == jnp.float32 else dtype
        matvec = curvature.hessian_matvec(loss, *ones, mode=LINEAR, product_dtype=narrow)
        square = jnp.ones((size, size), dtype)
        multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
        calls[f"product {name}"] = lambda matvec=matvec: matvec(vector)
        calls[f"matmul {name}"] = lambda a=square, multiply=multiply: multiply(a)
    seconds = time_in_turns(calls, repeats=config.repeats)
    flops = cost_model.product_flops(network_of("fc5"), config.timed_images)
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
    resnet50, narrow = network_of("resnet50"), narrow_resnet50()
    seven = cost_model.transformer(
        layers=32, width=4096, hidden=11008, vocabulary=32000, context=4096
    )
    in_float32, in_tf32 = (H100._replace(flops=H100_FLOPS[name]) for name in ("float32", "tf32"))
    on_8 = {"num_devices": 8, "mode": MODES[1]}
    few, many = {"num_examples": 10_000, "passes": 10}, {"num_examples": 50_000, "passes": 50}
    cases: dict[str, tuple[Network, Machine, dict[str, Any]]] = {
        "ResNet50, 10,000 images, 8 GPUs, float32": (resnet50, in_float32, on_8 | few),
        "the same in TF32": (resnet50, in_tf32, on_8 | few),
        "50,000 images in TF32": (resnet50, in_tf32, on_8 | many),
        "10,000 images, 32 GPUs, bfloat16 products, linearised": (
            narrow, H100._replace(link_bandwidth=INFINIBAND),
            {"num_examples": 10_000, "num_devices": 32, "mode": LINEAR, "product_bytes": 2},
        ),
        "7 billion, 2,560 sequences of 4,096 tokens, 256 GPUs, in bfloat16": (
            seven, H100._replace(link_bandwidth=INFINIBAND),
            {"num_examples": 2560, "num_devices": 256, "mode": "rematerialized", "sharded": True,
             "passes": 10, "product_bytes": 2},
        ),
    }  # fmt: skip
    return {name: project(*case[:2], efficiency, **case[2]) for name, case in cases.items()}


def narrow_resnet50() -> Network:
    """Count ResNet50 with the activations, as numbers of two bytes, that bfloat16 products keep."""
    kept = linearization("resnet50", jnp.bfloat16)
    return network_of("resnet50")._replace(activations=kept / 2 / IMAGES["resnet50"])


def project(network: Network, machine: Machine, efficiency: float, **how: Any) -> dict[str, Any]:
    """Project one, with the sum for a run."""
    how = how | {"num_steps": STEPS}
    cost = cost_model.product_cost(network, cost_model.derated(machine, efficiency), **how)
    return {
        "network": network,
        "how": how,
        "flops_assumed": machine.flops,
        "cost": cost,
        "device_bytes": cost.device_bytes,
        "seconds_a_step": cost.seconds,
        "seconds_for_the_run": STEPS * cost.seconds,
    }


def main(config: Config) -> None:
    """Project, time, check, write after each, and then the tables."""
    result: dict[str, Any] = {
        "benchmark": "scale_model",
        "settings": dataclasses.asdict(config) | {"output": None},
        "efficiency_assumed": EFFICIENCY,
        "steps": STEPS,
        "environment": environment(),
        "projections": projections(EFFICIENCY),
        "checks": {},
    }
    console.print(scale.plans(plain(result)), soft_wrap=True)
    result["timed"] = timed(config)
    for name in ("float32", "bfloat16"):
        console.print(
            f"FC5 here, {name}: {result['timed'][name]['efficiency']:.0%} of the matmul rate"
        )
    for name in IMAGES:
        for mode in MODES:
            result["checks"][f"{name}, {mode}"] = check(name, mode)
            write_json(config.output, result)
            console.print(f"{name}, {mode}:", plain(result["checks"][f"{name}, {mode}"]))
    pages.write(ROOT)


if __name__ == "__main__":
    main(tyro.cli(Config))
