"""Measure how products and Lanczos steps scale over the devices of a mesh, weak and strong.

Strong: the same images, shared by more devices. Weak: as many images for each device. Time is that
of one Hessian product and of one Lanczos step with full reorthogonalisation against a basis of
`num_steps`; beside it what the compiled programs say of each device, its floating-point operations
and the bytes of its part of the vectors and the basis. Virtual devices share the machine's cores:
where they are more than the cores, only the figures a device can fall.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

from jaxlimit import curvature, flatten_weights, lanczos, models, plotting
from jaxlimit.lab import figures
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.timing import time_in_turns


@dataclasses.dataclass
class Args:
    """Settings of the benchmark."""

    model: str = "fc5"
    pixels: tuple[int, int, int] = (8, 8, 1)
    """Height, width and channels of the images, random ones."""
    num_images: int = 2048
    """In the strong case; a device has an eighth of them in the weak one."""
    num_devices: tuple[int, ...] = (1, 2, 4, 8)
    """Devices of each mesh; on a CPU they are virtual ones."""
    num_steps: int = 32
    """Lanczos vectors in the basis."""
    repeats: int = 5
    output: Path = Path("benchmarks/results/mesh_scaling.json")


def make_case(args: Args, num_images: int, mesh: Mesh) -> tuple[Any, Any]:
    """Return the operator on `num_images` images and a full recurrence's state."""
    net = models.create(args.model, num_classes=10)
    images = jax.random.normal(jax.random.key(0), (1, num_images, *args.pixels))
    labels = jax.random.randint(jax.random.key(1), (1, num_images), 0, 10)
    params = net.init(jax.random.key(2), images[0, :1])["params"]

    def loss(params, batch):
        logits: Any = net.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    matvec = curvature.hessian_matvec(loss, params, (images, labels), mesh=mesh)
    start = jax.random.normal(jax.random.key(3), flatten_weights(params)[0].shape)
    return matvec, lanczos.start(start, num_steps=args.num_steps, mesh=mesh)


def bytes_of_first(tree: Any) -> int:
    """Return the bytes that the first device holds."""
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])


def flops_of_first(matvec: Any, vector: jax.Array) -> float | None:
    """Return the operations of one product on one device, as the compiler counts them."""
    compiled = jax.jit(lambda matvec, v: matvec(v)).lower(matvec, vector).compile()
    cost = compiled.cost_analysis()
    return cost and cost.get("flops")


def run(args: Args) -> list[dict[str, Any]]:
    """Time all cases in turns."""
    calls, about = {}, []
    for n in args.num_devices:
        mesh = Mesh(np.asarray(jax.devices()[:n]), ("data",))
        for kind, images in (("strong", args.num_images), ("weak", args.num_images * n // 8)):
            matvec, state = make_case(args, images, mesh)
            calls[f"{kind}, {n}, product"] = lambda m=matvec, s=state: m(s.current)
            calls[f"{kind}, {n}, step"] = lambda m=matvec, s=state: lanczos.extend(
                m, s, num_steps=1
            )
            about.append(
                {
                    "kind": kind,
                    "num_devices": n,
                    "num_images": images,
                    "dim": int(state.dim),
                    "flops_a_device": flops_of_first(matvec, state.current),
                    "vector_and_basis_bytes_a_device": bytes_of_first(
                        (state.previous, state.current, state.basis)
                    ),
                }
            )
    seconds = time_in_turns(calls, repeats=args.repeats)
    for case in about:
        for what in ("product", "step"):
            case[f"{what}_seconds"] = seconds[f"{case['kind']}, {case['num_devices']}, {what}"]
    return about


def conclude(results: list[dict[str, Any]]) -> str:
    """Say what came out, from the numbers."""
    strong = [case for case in results if case["kind"] == "strong"]
    first, last = strong[0], strong[-1]
    best = min(strong, key=lambda case: case["product_seconds"]["minimum"])
    memory = "vector_and_basis_bytes_a_device"
    ratio = lambda name, case: first[name] / case[name]  # noqa: E731
    speed = first["product_seconds"]["minimum"] / best["product_seconds"]["minimum"]
    flops = f"{ratio('flops_a_device', last):.2f}" if first["flops_a_device"] else "unknown times"
    time = "no mesh was faster than one device"
    if best is not first:
        time = (
            f"a product was fastest on {best['num_devices']}, {speed:.2f} times as fast as on one"
        )
    return (
        f"on {last['num_devices']} devices each holds 1/{ratio(memory, last):.2f} of the vectors "
        f"and basis and does 1/{flops} of the arithmetic of one; {time}"
    )


def main(args: Args) -> None:
    """Measure, write and draw."""
    jax.config.update("jax_num_cpu_devices", max(args.num_devices))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    start = environment() | {"cores": cores}
    results = run(args)
    conclusion = conclude(results)
    settings = {**dataclasses.asdict(args), "output": None}
    content = {"benchmark": "mesh_scaling", "settings": settings, "results": results}
    write_json(args.output, content | {"conclusion": conclusion, "environment": start})
    plotting.save(figures.plot_scaling(results, cores=cores or 1), args.output.with_suffix(".png"))
    console.print(conclusion)


if __name__ == "__main__":
    main(tyro.cli(Args))
