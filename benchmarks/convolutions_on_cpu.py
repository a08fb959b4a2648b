"""Time a convolution's gradient outside of a loop, in one, and in one as we do it.

python benchmarks/convolutions_on_cpu.py

All that trains and multiplies here runs in loops, where XLA's CPU backend does not bring a
convolution's axes into the order that its fast program takes. For images smaller than the
kernel, and the gradient of a kernel of 1x1, it is slow anywhere (`jaxlimit/_core/programs.py`).
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro

from jaxlimit._core.programs import canonical_convolutions
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.timing import time_in_turns


class Layer(NamedTuple):
    """A convolution with a square kernel."""

    images: int
    pixels: int
    channels: int
    kernel: int
    out: int


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the three on early layers of ResNet18 and ResNet50, and on the last ones of VGG16."""

    layers: tuple[Layer, ...] = (
        Layer(16, 32, 64, 3, 64),
        Layer(16, 32, 64, 1, 256),
        Layer(128, 2, 512, 3, 512),
    )
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
    kernel = jax.random.normal(keys[0], (layer.kernel, layer.kernel, layer.channels, layer.out))
    images = jax.random.normal(
        keys[1], (1, layer.images, layer.pixels, layer.pixels, layer.channels)
    )
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
    name_of = "{images} images of {pixels}x{pixels}, {kernel}x{kernel}, {channels} to {out}".format
    columns = {"layer": [name_of(**row["layer"]) for row in rows]}
    for way in rows[0]["seconds"]:
        columns[way] = [
            f"{row['seconds'][way]['minimum']:.3f} s, {row['over_ours'][way]:.1f} times"
            for row in rows
        ]
    console.print(markdown_table(columns), soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
