"""Measure what the precision of the Hessian's matrix products costs and saves, on a trained FC5.

python benchmarks/precision.py                               # FC5 on digits
python benchmarks/precision.py --dataset cifar10 --checkpoint FOLDER

The same Lanczos run from the same start vector, with products in float32 (no TF32), in TF32, and in
bfloat16 with float32 sums; what is between the products is float32 in all of them. A device without
TF32 rounds the operands of all products to its ten bits instead, which shows the error and not the
speed. Errors of λ_max, tr H and ρ* are against the same run in float64 throughout, or against
float32 where `--no-float64`. The script ends with the precision that the figures speak for.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jax.extend import core
from jax.tree_util import Partial

from jaxlimit import curvature, lanczos, models, spectrum, training
from jaxlimit._core.programs import change_products
from jaxlimit.lab import trained
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.timing import time_in_turns

ERROR_ALLOWED = 0.01  # of ρ*, a tenth of what its interval usually leaves open


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare precisions."""

    dataset: str = "digits"
    """digits or cifar10."""
    num_images: int = 10_000
    """Images in the Hessian, the first so many in thousands; at most all."""
    num_steps: int = 128
    repeats: int = 5
    """Timed products of each."""
    float64: bool = True
    """Run in float64 too and take it for the truth."""
    checkpoint: Path | None = None
    """Folder of the training checkpoint; default runs/benchmark-fc5-DATASET."""
    output: Path = Path("benchmarks/results")


# How each is made: the precision that JAX multiplies float32 in, and the type of the operands.
PRECISIONS: dict[str, tuple[str, Any]] = {
    "float32": ("highest", None),
    "tf32": ("tensorfloat32", None),
    "bfloat16": ("highest", jnp.bfloat16),
}


def available(name: str) -> bool:
    """Whether the device multiplies so at all: TF32 is NVIDIA's, since Ampere."""
    return name != "tf32" or jax.devices()[0].platform == "gpu"


def round_to_tf32(product: Callable, operands: list, params: dict[str, Any]) -> jax.Array:
    """Round the operands of a product to TF32's bits, and sum in float32."""
    operands = [jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10) for x in operands]
    return product(*operands, **params)


def emulate_tf32(net: trained.Trained) -> Partial:
    """Make the product whose primal pass, gradient and tangents all multiply as TF32 does."""
    matvec = curvature.hessian_matvec(
        net.loss, net.params, net.batches, mode="forward-over-reverse"
    )
    arrays, treedef = jax.tree.flatten(matvec)
    apply = lambda arrays, vector: jax.tree.unflatten(treedef, arrays)(vector)  # noqa: E731
    program = change_products(jax.make_jaxpr(apply)(arrays, net.weights), round_to_tf32)
    run = lambda arrays, vector: core.jaxpr_as_fun(program)(*arrays, vector)[0]  # noqa: E731
    return Partial(jax.jit(run), arrays)


def operator(net: trained.Trained, name: str) -> Any:
    """Make the product in a precision, linearised but for an emulated one."""
    if not available(name):
        return emulate_tf32(net)
    precision, product_dtype = PRECISIONS[name]
    with jax.default_matmul_precision(precision):
        return curvature.hessian_matvec(
            net.loss, net.params, net.batches, mode="linearized", product_dtype=product_dtype
        )


def measure(matvec: Any, start: Any, num_steps: int) -> spectrum.SpectralMeasure:
    """Run Lanczos and turn it into a measure."""
    result = lanczos.tridiagonalize(matvec, start, num_steps=num_steps, reorthogonalize="selective")
    return spectrum.measure_from(result, dim=start.size)


def truth(net: trained.Trained, start: Any, num_steps: int) -> dict[str, float]:
    """Read the figures off the run in float64."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(  # noqa: E731
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )
        module = models.create("fc5", num_classes=net.num_classes, dtype=jnp.float64)
        matvec = curvature.hessian_matvec(
            training.make_loss(module), wide(net.params), wide(net.batches)
        )
        return trained.reading(
            measure(matvec, wide(start), num_steps), wide(net.weights), wide(net.epsilon)
        )


def main(config: Config) -> None:
    """Measure errors and times, write them, and say which precision to take."""
    begin = environment()
    folder = config.checkpoint or Path("runs") / f"benchmark-fc5-{config.dataset}"
    net = trained.trained_fc5(config.dataset, config.num_images, folder.absolute())
    start = spectrum.probe(jax.random.key(2), net.weights.size)
    seconds, readings = {}, {}
    for name, (precision, _) in PRECISIONS.items():
        with jax.default_matmul_precision(precision):
            matvec = operator(net, name)
            if available(name):
                call = {name: partial(matvec, start)}
                seconds |= time_in_turns(call, repeats=config.repeats)
            spectrum_of = measure(matvec, start, config.num_steps)
        readings[name] = trained.reading(spectrum_of, net.weights, net.epsilon)
    reference = truth(net, start, config.num_steps) if config.float64 else readings["float32"]
    errors = {name: trained.relative(reading, reference) for name, reading in readings.items()}
    chosen = choose(errors, seconds)
    result = {
        "benchmark": "precision",
        "settings": dataclasses.asdict(config) | {"output": None, "checkpoint": None},
        "dim": net.weights.size,
        "reference": {"dtype": "float64" if config.float64 else "float32"} | reference,
        "readings": readings,
        "relative_errors": errors,
        "seconds_a_product": seconds,
        "emulated": [name for name in PRECISIONS if not available(name)],
        "chosen": chosen,
        "environment": begin,
    }
    write_json(config.output / f"precision_{config.dataset}.json", result)
    report(result)


def choose(errors: dict[str, dict[str, float]], seconds: dict[str, Any]) -> str:
    """Take the fastest of those timed whose ρ* is right to a hundredth."""
    right = [name for name in seconds if abs(errors[name]["ratio"]) <= ERROR_ALLOWED]
    return min(right or ["float32"], key=lambda name: seconds[name]["minimum"])


def report(result: dict[str, Any]) -> None:
    """Print a line for each precision, and the choice."""
    for name in PRECISIONS:
        error, taken = result["relative_errors"][name], result["seconds_a_product"].get(name)
        time = (
            "emulated here"
            if taken is None
            else (f"a product in {taken['minimum']:.4f} s at best, median {taken['median']:.4f} s")
        )
        console.print(
            f"{name:9} relative error of λ_max {error['largest']:+.1e}, tr H {error['trace']:+.1e},"
            f" ρ* {error['ratio']:+.1e}; {time}"
        )
    console.print(
        f"{result['chosen']} is the fastest whose ρ* is right to {ERROR_ALLOWED:.0%} "
        f"(interval: {result['reference']['width'] / result['reference']['ratio']:.0%} of ρ*)"
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
