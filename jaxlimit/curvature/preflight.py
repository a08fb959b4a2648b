"""Check an operator before a long run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlimit._core.checks import check_key, check_known, check_range
from jaxlimit._core.operator import Operator, prepare
from jaxlimit._core.programs import change_products, highest_precision, product_dtypes
from jaxlimit._core.scale import norm

_NUM_VECTORS = 4


class Preflight(NamedTuple):
    """What `check` found of an operator A. Errors are relative, and infinite if A is not finite.

    Attributes:
        problems: what is wrong, in words; empty if nothing is.
        finite: whether all products were finite.
        repeat_error: ‖A u - A u‖/‖A u‖ of the same product made twice, 0 if both are equal.
        symmetry_error: an estimate of ‖A - Aᵀ‖/‖A‖, Frobenius norms.
        linearity_error: ‖A(a u + b v) - a A u - b A v‖ over the sum of its terms' norms.
        precision_error: relative distance of a product from the one in the full precision of its
            operands; None where the operator is not traceable.
        product_dtypes: operand types of the matrix products; None where not traceable.
        num_bytes: memory of one compiled product and its operands; None where not traceable.
    """

    problems: tuple[str, ...]
    finite: bool
    repeat_error: float
    symmetry_error: float
    linearity_error: float
    precision_error: float | None
    product_dtypes: tuple[str, ...] | None
    num_bytes: int | None


def check(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int | None = None,
    dtype: Any = None,
    tolerance: float = 1e-2,
) -> Preflight:
    """Check that an operator is deterministic, finite, linear, symmetric and precise.

    Costs eight products, memory of some ten vectors, and three compilations of the product.

    Args:
        matvec: the operator A, an `Operator` or `Array[D] -> Array[D]`.
        key: random key of the Gaussian test vectors.
        dim: D; an `Operator` knows it.
        dtype: type of the vectors; by default that of `matvec`, or float32.
        tolerance: greatest relative error of symmetry and linearity that passes; bfloat16 products
            pass the default. Determinism and precision pass up to 100 units of rounding.

    Returns:
        A `Preflight`; its `problems` are empty if nothing is wrong.

    Raises:
        TypeError: if `dtype` or what `matvec` returns is not real floating, or `key` is no typed
            key.
        ValueError: if `dim` < 1, `tolerance` < 0, or `matvec` does not map [D] to [D].

    >>> import jax, jax.numpy as jnp
    >>> check(lambda v: 2 * v, jax.random.key(0), dim=5).problems
    ()
    >>> check(lambda v: jnp.roll(v, 1), jax.random.key(0), dim=5).problems
    ('matvec is not symmetric: A and its transpose are ... apart',)
    """
    check_key("key", key)
    check_known("check", key=key)
    check_range("tolerance", tolerance, 0)
    operator = prepare(matvec, dim, dtype)
    dtype = operator.dtype
    vectors = jax.random.normal(key, (_NUM_VECTORS, operator.dim), dtype)
    u, v, *_ = vectors
    program = {"precision_error": None, "product_dtypes": None, "num_bytes": None}
    if operator.traceable:
        program = _inspect_program(operator, u)
    products = jnp.stack([operator(vector) for vector in vectors])
    again, mixed = operator(u), operator(0.7 * u - 1.3 * v)
    terms = jnp.stack([mixed, 0.7 * products[0], -1.3 * products[1]])
    finite = bool(jnp.isfinite(products).all() & jnp.isfinite(mixed).all())
    report = Preflight(
        problems=(),
        finite=finite,
        repeat_error=_ratio(again - products[0], products[0]),
        symmetry_error=_asymmetry(vectors, products),
        linearity_error=_ratio(terms[0] - terms[1] - terms[2], terms),
        **program,
    )
    return report._replace(problems=_problems(report, tolerance, 100 * float(jnp.finfo(dtype).eps)))


def _ratio(difference: Array, whole: Array) -> float:
    """Return the ratio of two norms: 0 of nothing, infinite where something is not finite."""
    above, below = float(norm(difference)), float(norm(whole))
    if not jnp.isfinite(above + below):
        return float("inf")
    return above / below if below else float(above > 0)


def _asymmetry(vectors: Float[Array, "k D"], products: Float[Array, "k D"]) -> float:
    # E⟨u,Av⟩ - ⟨v,Au⟩ squared is ‖A - Aᵀ‖² and E‖Au‖² is ‖A‖² for Gaussian vectors, so the
    # ratio does not fade as D grows, as it does against ‖u‖‖Av‖.
    forms = vectors @ products.T
    pairs = forms[jnp.triu_indices(len(forms), 1)] - forms.T[jnp.triu_indices(len(forms), 1)]
    return _ratio(pairs / len(pairs) ** 0.5, products / len(products) ** 0.5)


def _inspect_program(matvec: Operator, vector: Float[Array, "D"]) -> dict[str, Any]:
    leaves = [*jax.tree.leaves(matvec), vector]
    program = jax.make_jaxpr(lambda matvec, vector: matvec(vector))(matvec, vector)
    exact = change_products(program, highest_precision)
    compiled = jax.jit(core.jaxpr_as_fun(program)).lower(*leaves).compile()
    (product,), (precise,) = compiled(*leaves), jax.jit(core.jaxpr_as_fun(exact))(*leaves)
    memory = compiled.memory_analysis()
    return {
        "precision_error": _ratio(product - precise, precise),
        "product_dtypes": tuple(sorted(product_dtypes(program.jaxpr))),
        "num_bytes": memory
        and memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes,
    }


def _problems(report: Preflight, tolerance: float, rounding: float) -> tuple[str, ...]:
    if not report.finite:
        return ("matvec is not finite: a product with a finite vector holds NaN or infinity",)
    precision_error = report.precision_error or 0.0
    found = {
        f"matvec is not deterministic: the same product came out {report.repeat_error:.1e} away "
        "the second time (dropout left on, or data that change between passes?)": (
            report.repeat_error > rounding
        ),
        f"matvec is not linear: A(au + bv) is {report.linearity_error:.1e} away from "
        "a Au + b Av": report.linearity_error > tolerance,
        f"matvec is not symmetric: A and its transpose are {report.symmetry_error:.1e} "
        "apart": report.symmetry_error > tolerance,
        f"matrix products run in reduced precision, such as TF32: relative error "
        f"{precision_error:.1e}; make and use the operator under "
        "jax.default_matmul_precision('highest')": precision_error > rounding,
    }
    return tuple(problem for problem, holds in found.items() if holds)
