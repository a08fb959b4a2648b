"""Time one Hessian-vector product side by side: ours, plain JAX, PyHessian, curvlinops.

python benchmarks/hessian_product.py                                    # FC5, 10,000 images
python benchmarks/hessian_product.py --model resnet18 --num-images 512

All multiply the same vector with the same Hessian, in turns in one process, with the machine's own
matrix products among them; the results are held against each other. The share of the matmul rate
counts the linear part's operations alone: six matrix products a dense layer, two for the first.
Those products are also timed bare, of the same shapes but with nothing between them: no program
that leaves them to XLA can be faster.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxlimit.lab import peers
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.timing import time_in_turns


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare products."""

    model: str = "fc5"
    """fc5, or resnet18 of a quarter of its width."""
    num_images: int = 10_000
    repeats: int = 5
    """Timed calls of each, after one to compile."""
    output: Path = Path("benchmarks/results")


def linear_operations(params: Any, num_images: int) -> int:
    """Count the linear part's floating-point operations in dense layers."""
    sizes = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    first = params["Dense_0"]["kernel"].size
    return 2 * num_images * (6 * sum(sizes) - 4 * first)


def bare_products(params: Any, num_images: int) -> dict[str, Callable]:
    """Make the linear part's matrix products alone, of values h, w and tangents dh, dw."""

    @jax.jit
    def multiply(h: list, dh: list, w: list, dw: list) -> list:
        product = partial(jnp.matmul, preferred_element_type=jnp.float32)
        results = []
        for i in range(len(w)):
            results += [product(h[i], dw[i]), product(h[i].T, dh[i + 1])]
            if i > 0:
                results += [product(dh[i], w[i]), product(dh[i].T, h[i + 1])]
                results += [product(h[i + 1], dw[i].T), product(dh[i + 1], w[i].T)]
        return results

    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    sizes = [kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)]
    calls = {}
    for dtype in ("float32", "bfloat16"):
        h, dh = ([jnp.ones((num_images, size), dtype) for size in sizes] for _ in range(2))
        w, dw = ([jnp.ones(kernel.shape, dtype) for kernel in kernels] for _ in range(2))
        calls[f"bare products, {dtype}"] = partial(multiply, h, dh, w, dw)
    return calls


def contenders(problem: peers.Problem) -> dict[str, Callable]:
    """Name how to make each product; what is made is called without arguments."""
    vector, tensors = problem.vector, problem.torch_vector(problem.vector)

    def bind(make: Callable, argument: Any) -> Callable:
        def made() -> Callable:
            product = make()
            return lambda: product(argument)

        return made

    return {
        "ours, float32": bind(lambda: peers.matvec(problem, mode="linearized"), vector),
        "ours, bfloat16": bind(lambda: peers.matvec(problem, product_dtype=jnp.bfloat16), vector),
        "plain JAX": bind(lambda: peers.plain_product(problem), vector),
        "PyHessian": bind(
            lambda: peers.pyhessian_product(peers.pyhessian_operator(problem)), tensors
        ),
        "curvlinops": bind(lambda: peers.curvlinops_product(problem), tensors),
    }


def disagreement(problem: peers.Problem, products: dict[str, Any]) -> dict[str, float]:
    """Measure how far each product is from plain JAX's, relative, on PyTorch's layout."""

    def flat(product: Any) -> np.ndarray:
        tensors = problem.torch_vector(product) if isinstance(product, jax.Array) else product
        return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])

    vectors = {name: flat(product) for name, product in products.items()}
    truth = vectors["plain JAX"]
    return {n: float(np.linalg.norm(v - truth) / np.linalg.norm(truth)) for n, v in vectors.items()}


def main(config: Config) -> None:
    """Build, time, compare and write."""
    start = environment()
    problem = peers.make_problem(config.model, config.num_images)
    setup, calls = {}, {}
    for name, make in contenders(problem).items():
        started = time.perf_counter()
        calls[name] = jax.block_until_ready(make())
        setup[name] = time.perf_counter() - started
    bare = bare_products(problem.params, config.num_images) if config.model == "fc5" else {}
    seconds = time_in_turns(calls | bare | peers.matmuls(), repeats=config.repeats)
    for name, taken in setup.items():
        seconds[name]["until_first"] = taken + seconds[name]["first"]
    rates = peers.matmul_rates(seconds)
    result = {
        "benchmark": "hessian_product",
        "settings": {**dataclasses.asdict(config), "output": None},
        "dim": problem.dim,
        "matmul_rates": rates,
        "seconds": seconds,
        "relative_difference": disagreement(problem, {n: call() for n, call in calls.items()}),
        "environment": start | peers.torch_environment(),
    }
    if config.model == "fc5":
        operations = linear_operations(problem.params, config.num_images)
        for who in ("ours", "bare products"):
            result[f"share_of_matmul_rate, {who}"] = {
                precision: operations
                / seconds[f"{who}, {precision}"]["minimum"]
                / rates[f"matmul {precision}"]
                for precision in ("float32", "bfloat16")
            }
    write_json(config.output / f"hessian_product_{config.model}.json", result)
    report(result)


def report(result: dict[str, Any]) -> None:
    """Print the times and what they come to."""
    seconds = result["seconds"]
    fastest = min(seconds[name]["minimum"] for name in ("PyHessian", "curvlinops"))
    for name, taken in seconds.items():
        console.print(
            f"{name:24} minimum {taken['minimum']:.4f} s, median {taken['median']:.4f} s, "
            f"{fastest / taken['minimum']:.2f} times as fast as the fastest PyTorch peer"
        )
    console.print("relative difference:", result["relative_difference"])
    console.print({name: share for name, share in result.items() if name.startswith("share")})


if __name__ == "__main__":
    main(tyro.cli(Config))
