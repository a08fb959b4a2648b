"""Time stochastic Lanczos quadrature side by side, and what the recurrence costs beside products.

python benchmarks/lanczos_speed.py                                  # 96 steps, 10,000 images
python benchmarks/lanczos_speed.py --case deep --num-steps 192

"side-by-side": FC5, one probe, full reorthogonalisation, against PyHessian's density and matfree's
quadrature over plain JAX. "deep": the recurrence without a basis against as many products in one
compiled loop, in bfloat16. What ours takes longer than its products alone is the recurrence's
share. Compilation is timed apart.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from jaxlimit import lanczos, limits, spectrum
from jaxlimit.lab import peers
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.timing import time_in_turns


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare quadratures."""

    case: Literal["side-by-side", "deep"] = "side-by-side"
    num_images: int = 10_000
    num_steps: int = 96
    repeats: int = 1
    contenders: tuple[str, ...] = ()
    """Those to time; all of the case by default."""
    output: Path = Path("benchmarks/results")


def compiled(function: Callable, *operands: Any) -> Callable:
    """Compile a function for its operands, and bind them."""
    program = jax.jit(function).lower(*operands).compile()
    return lambda: program(*operands)


def products(matvec: Any, vector: Any, *, num_steps: int) -> Any:
    """Multiply again and again, each time with the last product brought back to unit length."""

    def step(vector, _):
        product = matvec(vector)
        return product / jnp.linalg.norm(product), None

    return jax.lax.scan(step, vector, length=num_steps)[0]


def recurrence(matvec: Any, vector: Any, *, num_steps: int, mode: str) -> Any:
    """Run ours, without the basis in what comes back."""
    run = lanczos.tridiagonalize(matvec, vector, num_steps=num_steps, reorthogonalize=mode)
    return run._replace(basis=None)


def contenders(problem: peers.Problem, config: Config) -> dict[str, Callable]:
    """Name how to make each call ready."""
    num_steps = config.num_steps
    mode = "full" if config.case == "side-by-side" else "none"

    def ready(function: Callable, dtype: Any, **settings: Any) -> Callable:
        matvec = peers.matvec(problem, mode="linearized", product_dtype=dtype)
        bound = partial(function, num_steps=num_steps, **settings)
        return compiled(bound, matvec, problem.vector)

    def measured(dtype: Any) -> Callable:
        run = ready(recurrence, dtype, mode=mode)
        return lambda: spectrum.measure_from(run(), dim=problem.dim)

    named = {}
    for label, dtype in (("float32", None), ("bfloat16", jnp.bfloat16)):
        if config.case == "side-by-side" or dtype is not None:
            named[f"ours, {label}"] = partial(measured, dtype)
            named[f"products, {label}"] = partial(ready, products, dtype)
    if config.case == "side-by-side":
        share = partial(limits.curvature_share, ridge=0.03)
        quadrature = partial(peers.matfree_quadrature, num_steps=num_steps, function=share)
        named["matfree"] = lambda: compiled(
            quadrature, peers.plain_product(problem), problem.vector
        )
        named["PyHessian"] = lambda: partial(
            peers.pyhessian_density, peers.pyhessian_operator(problem), num_steps
        )
    return {n: make for n, make in named.items() if n in (config.contenders or named)}


def main(config: Config) -> None:
    """Compile, time, compare and write."""
    start = environment()
    problem = peers.make_problem("fc5", config.num_images)
    calls, setup = {}, {}
    for name, make in contenders(problem, config).items():
        started = time.perf_counter()
        calls[name] = make()
        setup[name] = time.perf_counter() - started
        console.print(f"{name}: ready after {setup[name]:.1f} s")
    calls |= peers.matmuls()
    seconds = time_in_turns(calls, repeats=config.repeats, warm_up=False)
    for name, taken in setup.items():
        seconds[name]["setup"] = taken
    shares = {
        precision: 1 - seconds[f"products, {precision}"]["minimum"] / ours["minimum"]
        for precision in ("float32", "bfloat16")
        if (ours := seconds.get(f"ours, {precision}")) and f"products, {precision}" in seconds
    }
    result = {
        "benchmark": "lanczos_speed",
        "settings": {**dataclasses.asdict(config), "output": None},
        "dim": problem.dim,
        "matmul_rates": peers.matmul_rates(seconds),
        "seconds": seconds,
        "share_of_recurrence": shares,
        "environment": start | peers.torch_environment(),
    }
    write_json(config.output / f"lanczos_speed_{config.case}.json", result)
    for name, taken in seconds.items():
        console.print(f"{name:24} {taken['minimum']:.3f} s, setup {taken.get('setup', 0):.1f} s")
    console.print("share of the recurrence:", shares)


if __name__ == "__main__":
    main(tyro.cli(Config))
