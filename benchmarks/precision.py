"""Measure what the precision of the Hessian's matrix products costs and saves, on a trained FC5.

python benchmarks/precision.py                               # FC5 on digits
python benchmarks/precision.py --dataset cifar10 --checkpoint FOLDER

The same Lanczos run from the same start vector, with products in float32 (no TF32), in TF32 where
the device has it, and in bfloat16 with float32 sums; what is between the products is float32 in all
of them. Errors of λ_max, tr H and ρ* are against the same run in float64 throughout, or against
float32 where `--no-float64`. The script ends with the precision that the figures speak for.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import trained
import tyro

from jaxlimit import curvature, lanczos, models, spectrum, training
from jaxlimit.reporting import console, environment, time_in_turns, write_json

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


def operator(net: trained.Trained, name: str) -> Any:
    """Make the linearised product in a precision."""
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
    names = [name for name in PRECISIONS if available(name)]
    operators = {name: operator(net, name) for name in names}
    seconds = {}
    for name, (precision, _) in PRECISIONS.items():
        if name in operators:
            with jax.default_matmul_precision(precision):
                call = {name: lambda name=name: operators[name](start)}
                seconds |= time_in_turns(call, repeats=config.repeats)
    readings = {}
    for name in names:
        with jax.default_matmul_precision(PRECISIONS[name][0]):
            spectrum_of = measure(operators[name], start, config.num_steps)
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
        "not_available": [name for name in PRECISIONS if not available(name)],
        "chosen": chosen,
        "environment": begin,
    }
    write_json(config.output / f"precision_{config.dataset}.json", result)
    report(result)


def choose(errors: dict[str, dict[str, float]], seconds: dict[str, Any]) -> str:
    """Take the fastest whose ρ* is right to a hundredth."""
    right = [name for name, error in errors.items() if abs(error["ratio"]) <= ERROR_ALLOWED]
    return min(right or ["float32"], key=lambda name: seconds[name]["minimum"])


def report(result: dict[str, Any]) -> None:
    """Print a line for each precision, and the choice."""
    for name in PRECISIONS:
        if name in result["not_available"]:
            console.print(f"{name:9} not available here")
            continue
        error, taken = result["relative_errors"][name], result["seconds_a_product"][name]
        console.print(
            f"{name:9} relative error of λ_max {error['largest']:+.1e}, tr H {error['trace']:+.1e},"
            f" ρ* {error['ratio']:+.1e}; a product in {taken['minimum']:.4f} s at best, median"
            f" {taken['median']:.4f} s"
        )
    console.print(
        f"{result['chosen']} is the fastest whose ρ* is right to {ERROR_ALLOWED:.0%} "
        f"(interval: {result['reference']['width'] / result['reference']['ratio']:.0%} of ρ*)"
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
