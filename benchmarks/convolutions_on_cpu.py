"""Time a convolution's gradient outside of a loop, in one, and in one as we do it.

python benchmarks/convolutions_on_cpu.py

All that trains and multiplies here runs in loops, where XLA's CPU backend does not bring a
convolution's axes into the order that its fast program takes; and for images smaller than the
kernel it does not take that program anywhere (`jaxlimit/_products.py`).
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro

from jaxlimit._products import canonical_convolutions
from jaxlimit.reporting import console, environment, markdown_table, time_in_turns, write_json


class Layer(NamedTuple):
    """A convolution of 3x3 that keeps the channels."""

    images: int
    pixels: int
    channels: int


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the three on the first layers of a ResNet18 and on the last ones of a VGG16."""

    layers: tuple[Layer, ...] = (Layer(16, 32, 64), Layer(128, 2, 512))
    repeats: int = 5
    output: Path = Path("benchmarks/results")


def square(kernel: jax.Array, images: jax.Array) -> jax.Array:
    """Convolve, channels last, and sum the squares."""
    orders = ("NHWC", "HWIO", "NHWC")
    return (
        jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=orders) ** 2
    ).sum()


def times_of(layer: Layer, repeats: int) -> dict[str, Any]:
    """Time the gradient of kernel and images three ways, in turns."""
    keys = jax.random.split(jax.random.key(0))
    num_images, pixels, channels = layer
    kernel = jax.random.normal(keys[0], (3, 3, channels, channels))
    images = jax.random.normal(keys[1], (1, num_images, pixels, pixels, channels))
    gradient = jax.grad(square, argnums=(0, 1))

    def in_loop(gradient):
        def of_batch(batch):
            return gradient(kernel, batch)

        return jax.jit(lambda images: jax.lax.map(of_batch, images))

    alone = jax.jit(gradient)
    plain, ours = in_loop(gradient), in_loop(canonical_convolutions(gradient))
    calls = {
        "alone": lambda: alone(kernel, images[0]),
        "in a loop": lambda: plain(images),
        "in a loop, as here": lambda: ours(images),
    }
    return time_in_turns(calls, repeats=repeats)


def main(config: Config) -> None:
    """Time them, write and print the least times, and how many times the last way's they are."""
    rows = []
    for layer in config.layers:
        seconds = times_of(layer, config.repeats)
        least = {name: times["minimum"] for name, times in seconds.items()}
        over_ours = {name: time / least["in a loop, as here"] for name, time in least.items()}
        rows.append({"layer": layer._asdict(), "seconds": seconds, "over_ours": over_ours})
    result = {
        "benchmark": "convolutions_on_cpu",
        "repeats": config.repeats,
        "rows": rows,
        "environment": environment(),
    }
    write_json(config.output / "convolutions_on_cpu.json", result)
    name_of = "{images} images, {pixels} pixels, {channels} channels".format
    columns = {"layer": [name_of(**row["layer"]) for row in rows]}
    for way in rows[0]["seconds"]:
        columns[way] = [
            f"{row['seconds'][way]['minimum']:.3f} s, {row['over_ours'][way]:.1f} times"
            for row in rows
        ]
    console.print(markdown_table(columns), soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
