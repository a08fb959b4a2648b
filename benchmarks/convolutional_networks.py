"""Time a training step and a Hessian product of convolutional networks on a CPU, beside PyTorch.

python benchmarks/convolutional_networks.py --peer-python /path/to/python    # with torch in it
python benchmarks/convolutional_networks.py                                  # ours alone

PyTorch runs in a process of its own, since it lives in an environment of its own: channels last,
in float32 and in bfloat16 by autocast, one step after another of ours. A product there goes back
through a graph of the gradient that was made before, the fastest way that it has. Wall time and CPU
time are of one call; on a busy machine the threads of PyTorch spin while they wait, so that
`--threads 1` compares better.
"""

import dataclasses
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from jaxlimit import curvature, lab, models, training
from jaxlimit._core.programs import canonical_convolutions
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.markdown import markdown_table

FIELDS = {"resnet18-small": {"width": 16}}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare steps and products."""

    cases: tuple[str, ...] = (
        "train vgg16 32", "train resnet18 32", "train resnet50 64",
        "product resnet18-small 32", "product vgg16 32",
    )  # fmt: skip
    """What is timed, of which network, with how many pixels a side."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    num_images: int = 128
    repeats: int = 5
    threads: int = 2
    """Of PyTorch; XLA takes the cores that the process may use (`taskset`)."""
    peer_python: Path | None = None
    """Python of an environment that has torch."""
    output: Path = Path("benchmarks/results")


class Peer:
    """PyTorch's side of a case, in a process that runs one call for each line it is sent."""

    def __init__(self, python: Path, case: str, dtype: str, config: Config) -> None:
        settings = [*case.split(), dtype, str(config.num_images), str(config.threads)]
        self.process = subprocess.Popen(
            [str(python), f"{lab.__path__[0]}/torch_step.py", *settings],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self) -> dict[str, float]:
        """Run it once; return wall and CPU seconds."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018  both are pipes
        print("go", file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with exit code {self.process.wait()}")
        wall, cpu = map(float, line.split())
        return {"wall": wall, "cpu": cpu}

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def make_call(case: str, dtype: str, num_images: int) -> Callable:
    """Make ours: one step of SGD with the forms of `canonical_convolutions`, or one product."""
    kind, name, pixels = case.split()
    fields = FIELDS.get(name, {})
    module = models.create(
        name.split("-")[0], num_classes=10,
        dtype=jnp.dtype(dtype if kind == "train" else "float32"), **fields,
    )  # fmt: skip
    images = jax.random.normal(jax.random.key(0), (1, num_images, int(pixels), int(pixels), 3))
    batches = images, jnp.arange(num_images, dtype=jnp.int32)[None] % 10
    state = dict(module.init(jax.random.key(1), images[0, :1]))
    params = state.pop("params")
    if kind == "product":
        narrow = jnp.bfloat16 if dtype == "bfloat16" else None
        of_data = training.make_loss(module)
        matvec = curvature.hessian_matvec(of_data, params, batches, state, product_dtype=narrow)
        product = jax.jit(lambda matvec, vector: matvec(vector))
        return partial(product, matvec, jax.random.normal(jax.random.key(2), (matvec.dim,)))

    def loss(params: Any, images: Any, labels: Any) -> Any:
        logits, _ = module.apply(
            {"params": params, **state}, images, train=True, mutable=list(state)
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = canonical_convolutions(jax.grad(loss))

    @jax.jit
    def step(params: Any, batches: Any) -> Any:
        def update(params: Any, batch: Any) -> tuple[Any, None]:
            return jax.tree.map(lambda w, g: w - 0.01 * g, params, gradient(params, *batch)), None

        return jax.lax.scan(update, params, batches)[0]

    return partial(step, params, batches)


def timed(call: Callable) -> dict[str, float]:
    """Run it once; return wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def compare(case: str, dtype: str, config: Config) -> dict[str, Any]:
    """Time both sides in turns."""
    sides: dict[str, Callable] = {"ours": partial(timed, make_call(case, dtype, config.num_images))}
    peer = Peer(config.peer_python, case, dtype, config) if config.peer_python else None
    if peer:
        sides["torch"] = peer
    for call in sides.values():
        call()
    rounds = [{name: call() for name, call in sides.items()} for _ in range(config.repeats)]
    if peer:
        peer.close()
    return {
        name: {
            clock: {"minimum": min(times), "median": median(times), "all": times}
            for clock in ("wall", "cpu")
            for times in [[one[name][clock] for one in rounds]]
        }
        for name in sides
    }


def main(config: Config) -> None:
    """Time the cases, write one JSON each, and print images a second."""
    lines: dict[str, list[str]] = {name: [] for name in ("case", "clock", "ours", "torch", "ratio")}
    for case in config.cases:
        for dtype in config.dtypes:
            seconds = compare(case, dtype, config)
            name = f"convolutional_networks-{case.replace(' ', '-')}-{dtype}"
            settings = {"case": case, "dtype": dtype, "num_images": config.num_images,
                        "threads": config.threads}  # fmt: skip
            result = {"benchmark": "convolutional_networks", "settings": settings,
                      "seconds": seconds, "environment": environment()}  # fmt: skip
            write_json(config.output / f"{name}.json", result)
            for clock in ("wall", "cpu"):
                rates = {side: config.num_images / times[clock]["minimum"]
                         for side, times in seconds.items()}  # fmt: skip
                other = rates.get("torch")
                cells = (f"{case}, {dtype}", clock, f"{rates['ours']:.1f} images/s",
                         f"{other:.1f} images/s" if other else "not there",
                         f"{rates['ours'] / other:.2f}" if other else "")  # fmt: skip
                for column, cell in zip(lines.values(), cells, strict=True):
                    column.append(cell)
    console.print(markdown_table(lines), soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
