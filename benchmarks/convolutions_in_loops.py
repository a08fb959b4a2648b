"""Time the gradient of a convolution's kernel outside of a loop, in one, and in one as we do it.

python benchmarks/convolutions_in_loops.py

All that trains and multiplies here runs in loops, where XLA's CPU backend does not bring a
convolution's axes into the order that its fast program takes (`jaxlimit/_products.py`).
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from jaxlimit._products import canonical_convolutions
from jaxlimit.reporting import console, environment, time_in_turns, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the three, on one batch."""

    num_images: int = 16
    pixels: int = 32
    channels: int = 64
    repeats: int = 5
    output: Path = Path("benchmarks/results")


def square(kernel: jax.Array, images: jax.Array) -> jax.Array:
    """Convolve with a kernel of 3x3, channels last, and sum the squares."""
    orders = ("NHWC", "HWIO", "NHWC")
    return (
        jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=orders) ** 2
    ).sum()


def main(config: Config) -> None:
    """Time them in turns, write and say how many times longer the loop takes."""
    keys, channels = jax.random.split(jax.random.key(0)), config.channels
    kernel = jax.random.normal(keys[0], (3, 3, channels, channels))
    shape = (1, config.num_images, config.pixels, config.pixels, channels)
    images = jax.random.normal(keys[1], shape)

    def in_loop(gradient):
        def add(total, batch):
            return total + gradient(kernel, batch), None

        return jax.jit(lambda images: jax.lax.scan(add, jnp.zeros_like(kernel), images)[0])

    alone = jax.jit(jax.grad(square))
    plain, ours = in_loop(jax.grad(square)), in_loop(canonical_convolutions(jax.grad(square)))
    calls = {
        "alone": lambda: alone(kernel, images[0]),
        "in a loop": lambda: plain(images),
        "in a loop, channels last": lambda: ours(images),
    }
    seconds = time_in_turns(calls, repeats=config.repeats)
    least = {name: times["minimum"] for name, times in seconds.items()}
    result = {
        "benchmark": "convolutions_in_loops",
        "settings": dataclasses.asdict(config) | {"output": None},
        "seconds": seconds,
        "times_as_long": {name: least[name] / least["alone"] for name in least},
        "environment": environment(),
    }
    write_json(config.output / "convolutions_in_loops.json", result)
    for name, times in result["times_as_long"].items():
        console.print(f"{name}: {least[name]:.4f} s, {times:.1f} times")


if __name__ == "__main__":
    main(tyro.cli(Config))
