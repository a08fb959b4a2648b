"""The result type of every eigenpair solver."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Eigenpairs(NamedTuple):
    """Eigenvalues with orthonormal eigenvectors, and how good they are.

    Attributes:
        values: vᵀHv, in the order that `which` states.
        vectors: row i belongs to `values[i]`; on a mesh it may have zeros past its D entries.
        residual_norms: ‖Hv - λv‖, from one more product each; an eigenvalue lies this close.
        converged: whether the residual norm is within the tolerance.
        complete: whether a last round from a fresh random vector found nothing more extreme.
        num_products: total number of products.
        failed_product: index of a product that was not finite, which ended the run; -1 if none.
    """

    values: Float[Array, "k"]
    vectors: Float[Array, "k D"]
    residual_norms: Float[Array, "k"]
    converged: Bool[Array, "k"]
    complete: Bool[Array, ""]
    num_products: Int[Array, ""]
    failed_product: Int[Array, ""]
