"""Euclidean projections onto cones, and the statistical dimension of any cone by Monte Carlo."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from jaxlimit._core import scale
from jaxlimit._core.checks import (
    check_count,
    check_floating_tree,
    check_key,
    check_range,
    is_concrete,
)
from jaxlimit._core.estimate import Estimate, estimate_from_samples
from jaxlimit.geometry._numerics import (
    STRETCH,
    TOLERANCE,
    as_operand,
    check_point,
    check_vector,
    increasing_root,
    map_gaussian,
    map_rows,
)
from jaxlimit.geometry.cones import check_circular

Projection = Callable[[Float[Array, " dim"]], Float[Array, " dim"]]


def _check_projection(project: Projection, points: Float[Array, "n dim"]) -> None:
    """Raise unless `project` acts on `points` as the projection onto a closed convex cone.

    Moreau: p = Π(x) for a closed convex cone C iff p ∈ C, ⟨x-p, p⟩ = 0 and ⟨x-p, q⟩ ≤ 0 for all
    q ∈ C; the images of the other points serve as the q.
    """
    got = jax.eval_shape(project, points[0]).shape
    if got != points.shape[1:]:
        raise ValueError(f"project must map shape {points.shape[1:]} to itself, got {got}")
    operand = as_operand(project, jax.ShapeDtypeStruct(points.shape[1:], points.dtype))
    near_and_far = map_rows(operand, jnp.concatenate([points, STRETCH * points]))
    twice = map_rows(operand, near_and_far)
    if not is_concrete(twice):
        return
    eps = float(jnp.finfo(points.dtype).eps)
    x, near_and_far, twice = (np.asarray(a, np.float64) for a in (points, near_and_far, twice))
    if not np.isfinite([near_and_far, twice]).all():
        raise ValueError("project must return finite numbers, got NaN or infinity")
    images, stretched = np.split(near_and_far, 2)
    size = np.linalg.norm(x, axis=1)
    allowed = TOLERANCE * np.linalg.norm(images, axis=1) + 100 * eps * size
    failures = {
        "idempotent, project(project(x)) = project(x)": images - twice[: len(x)],
        "positively homogeneous, project(t x) = t project(x): a projection onto a cone": (
            images - stretched / STRETCH
        ),
    }
    for expectation, error in failures.items():
        gap = np.linalg.norm(error, axis=1)
        if (gap > allowed).any():
            raise ValueError(f"project must be {expectation}; on a sample it is off by {gap.max()}")
    products = (x - images) @ images.T
    products = np.where(np.eye(len(x)), abs(products), products)
    if (products > np.outer(size, allowed)).any():
        raise ValueError(
            "project must be the nearest-point map onto a convex cone, so that <x - project(x), "
            f"project(y)> <= 0 with equality at y = x; on a sample it is {products.max()}"
        )


def statistical_dimension(
    project: Projection,
    key: PRNGKeyArray,
    *,
    dim: int,
    num_samples: int,
    batch_size: int = 256,
    dtype: DTypeLike = float,
) -> Estimate:
    """Estimate δ(C) = E‖Π_C(g)‖² from the projection onto any closed convex cone.

    Π_C is positively homogeneous, and the length of g is independent of its direction. So each
    sample is D ‖Π_C(g)‖²/‖g‖²: unbiased, without the noise of the length.

    Args:
        project: Euclidean projection [dim] -> [dim] onto a closed convex cone, such as
            `optax.projections.projection_non_negative` or a `*_projection` of this module. It is
            checked on a few samples, but not under `jit`.
        key: random key.
        dim: D.
        num_samples: projections taken, besides 3 for the check. The standard error is about
            √(2 min(δ, D-δ) / num_samples) at most.
        batch_size: projections at a time; memory is O(batch_size D).
        dtype: floating dtype of the samples.

    Returns:
        `Estimate` of δ.

    Raises:
        TypeError: if a count is no integer, or `key` is no typed key.
        ValueError: if a count is below 1, or `project` is not idempotent, not positively
            homogeneous, or not the nearest-point map onto a convex cone.

    >>> import jax, optax
    >>> project = optax.projections.projection_non_negative
    >>> estimate = statistical_dimension(project, jax.random.key(0), dim=20, num_samples=4000)
    >>> estimate.value, estimate.standard_error  # the exact value is 10
    (Array(10.0, dtype=float32), Array(0.05, dtype=float32))

    Amelunxen, Lotz, McCoy, Tropp (2014), section 2.
    """
    dim, num_samples = check_count("dim", dim), check_count("num_samples", num_samples)
    batch_size = check_count("batch_size", batch_size)
    check_key("key", key)
    probe_key, key = jax.random.split(key)
    probes = jax.random.normal(probe_key, (3, dim), jnp.promote_types(dtype, jnp.float32))
    if is_concrete(probes):
        _check_projection(project, probes)
    operand = as_operand(project, jax.ShapeDtypeStruct((dim,), dtype))
    samples = map_gaussian(_sample, operand, key, dim, num_samples, batch_size, dtype)
    return estimate_from_samples(samples)


def _sample(project: Projection, point: Float[Array, " dim"]) -> Float[Array, ""]:
    return point.size * (scale.norm(project(point)) / scale.norm(point)) ** 2


def polar_projection(project: Projection) -> Projection:
    """Return the projection onto the polar cone C° = {z : ⟨z, x⟩ ≤ 0 for all x ∈ C}, x - Π_C(x).

    Args:
        project: projection onto C.

    Returns:
        Projection onto C°.

    >>> import jax.numpy as jnp, optax
    >>> polar_projection(optax.projections.projection_non_negative)(jnp.array([2.0, -3.0]))
    Array([ 0., -3.], dtype=float32)

    Moreau (1962), the decomposition x = Π_C(x) + Π_C°(x).
    """
    return Partial(_project_polar, as_operand(project))


def _project_polar(project, point):
    return point - project(point)


def subspace_projection(basis: Float[Array, "dim k"]) -> Projection:
    """Return the projection onto the column space of `basis`.

    Args:
        basis: [D, k] of full column rank, k ≤ D; need not be orthonormal.

    Returns:
        Projection, O(Dk) a call.

    Raises:
        ValueError: if `basis` is not a matrix of k ≤ D finite, independent columns; of the
            projection, if the point has not D entries.

    >>> import jax.numpy as jnp
    >>> subspace_projection(jnp.array([[0.0], [3.0]]))(jnp.array([1.0, 2.0]))
    Array([0., 2.], dtype=float32)
    """
    check_floating_tree("basis", basis)
    if jnp.ndim(basis) != 2 or basis.shape[1] > basis.shape[0]:
        raise ValueError(f"basis must be [dim, k] with k <= dim, got shape {jnp.shape(basis)}")
    _check_independent(basis)
    return Partial(_project_subspace, jnp.linalg.qr(basis)[0])


def _check_independent(basis: Float[Array, "dim k"]) -> None:
    """Raise unless the columns are independent, at any length, as far as known."""
    if not is_concrete(basis):
        return
    columns = np.asarray(basis, np.float64)
    lengths = np.linalg.norm(columns, axis=0)
    values = np.linalg.svd(columns / np.where(lengths > 0, lengths, 1), compute_uv=False)
    # Rounded to their dtype, dependent unit columns have a singular value of k/2 eps at most.
    rank = int((values > lengths.size * float(jnp.finfo(jnp.result_type(basis)).eps)).sum())
    if rank < lengths.size:
        raise ValueError(
            f"basis must have independent columns, hence rank {lengths.size}, got rank {rank}"
        )


def _project_subspace(frame, point):
    check_point("point", point, frame.shape[0])
    return frame @ (frame.T @ point)


def circular_cone_projection(half_angle: Float[Array, ""] | float) -> Projection:
    """Return the projection onto the circular cone of half-angle α about the first axis.

    Args:
        half_angle: α in radians, in [0, π/2].

    Returns:
        Projection, O(D) a call.

    Raises:
        ValueError: if `half_angle` is out of range.

    >>> import jax.numpy as jnp
    >>> circular_cone_projection(jnp.pi / 4)(jnp.array([0.0, 2.0]))
    Array([1., 1.], dtype=float32)
    """
    check_circular(2, half_angle)
    return Partial(_project_circular, half_angle)


def _project_circular(half_angle, point):
    along, across = point[0], scale.norm(point[1:])
    cosine, sine = jnp.cos(half_angle), jnp.sin(half_angle)
    length = jnp.maximum(along * cosine + across * sine, 0)
    shrink = jnp.where(across > 0, length * sine / jnp.where(across > 0, across, 1), 0)
    edge = jnp.concatenate([(length * cosine)[None], shrink * point[1:]])
    return jnp.where(jnp.arctan2(across, along) <= half_angle, point, edge).astype(point.dtype)


def psd_cone_projection(n: int) -> Projection:
    """Return the projection of flattened n by n matrices onto the positive semidefinite ones.

    Args:
        n: number of rows, ≥ 1; points have n² entries, row by row.

    Returns:
        Projection, O(n³) a call: symmetrise, then drop the negative eigenvalues.

    Raises:
        TypeError: if n is no integer.
        ValueError: if n is below 1; of the projection, if the point has not n² entries.

    >>> import jax.numpy as jnp
    >>> psd_cone_projection(2)(jnp.array([3.0, 0.0, 0.0, -1.0]))
    Array([3., 0., 0., 0.], dtype=float32)
    """
    return Partial(_ProjectPsd(check_count("n", n)))


@dataclasses.dataclass(frozen=True)
class _ProjectPsd:
    """A projection that equals any other of the same n, so that jit's cache finds it."""

    n: int

    def __call__(self, point):
        check_point("point", point, self.n**2)
        matrix = point.reshape(self.n, self.n)
        values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
        return ((vectors * jnp.maximum(values, 0)) @ vectors.T).ravel()


def l1_descent_cone_projection(signs: Float[Array, " dim"]) -> Projection:
    """Return the projection onto the descent cone of ‖·‖₁ at a vector with the given signs.

    Its polar is {τ z : τ ≥ 0, z ∈ ∂‖x‖₁}. The τ nearest to a point g is the largest of the roots
    τ_j = (Σ_S s_i g_i + the j largest |g_i| off S) / (|S| + j), or 0 if all are negative.

    Args:
        signs: s, [D], entries -1, 0, 1, not all 0; S is where it is not 0.

    Returns:
        Projection, O(D log D) a call.

    Raises:
        ValueError: if `signs` is no vector, has other entries or only zeros; of the projection,
            if the point has not D entries.

    >>> import jax.numpy as jnp
    >>> l1_descent_cone_projection(jnp.array([1.0, 0.0]))(jnp.array([1.0, 1.0]))
    Array([0., 0.], dtype=float32)
    """
    if jnp.ndim(signs) != 1:
        raise ValueError(f"signs must be a vector, got shape {jnp.shape(signs)}")
    if is_concrete(signs):
        entries = np.asarray(signs)
        if not (np.isin(entries, (-1, 0, 1)).all() and entries.any()):
            raise ValueError(f"signs must be -1, 0 or 1 and not all 0, got {signs}")

    return Partial(_project_l1_descent, jnp.asarray(signs))


def _project_l1_descent(signs, point):
    check_point("point", point, signs.size)
    off = signs == 0
    sizes = jnp.sort(jnp.where(off, abs(point), 0), descending=True)
    sums = jnp.sum(signs * point) + jnp.concatenate([jnp.zeros_like(sizes[:1]), jnp.cumsum(sizes)])
    roots = sums / (jnp.arange(sums.size) + jnp.sum(~off))
    length = jnp.maximum(jnp.max(roots), 0)
    normal = jnp.where(off, jnp.clip(point, -length, length), length * signs)
    return (point - normal).astype(point.dtype)


def ellipsoid_cone_projection(
    semi_axes: Float[Array, " dim"], viewpoint: Float[Array, " dim"]
) -> Projection:
    """Return the exact projection onto the cone of an ellipsoid seen from a point outside it.

    The cone {t (y - x₀) : t ≥ 0, Σ y_i²/r_i² ≤ 1} is polar to {z : zᵀMz ≤ 0, ⟨x₀, z⟩ ≥ 0},
    M = diag(r²) - x₀x₀ᵀ. M has one negative eigenvalue -m and others m_j, so in its eigenbasis the
    polar is the elliptic cone {Σ a_j² u_j² ≤ z₀²}, a_j² = m_j/m. The projection of (g₀, u) onto it
    has the entries u_j / (1 + (1 - g₀/z₀) a_j²) and the root z₀ ≥ max(0, g₀) of

        Σ a_j² u_j² / (z₀ + (z₀ - g₀) a_j²)² = 1,

    whose left side decreases in z₀.

    Args:
        semi_axes: r, [D], ≥ 0, finite.
        viewpoint: x₀, [D], outside the ellipsoid.

    Returns:
        Projection, O(D²) a call, after one eigendecomposition of a D by D matrix.

    Raises:
        ValueError: if shapes differ, a semi-axis is out of range, or x₀ is inside; of the
            projection, if the point has not D entries.

    >>> import jax.numpy as jnp
    >>> project = ellipsoid_cone_projection(jnp.ones(2), jnp.array([-2.0**0.5, 0.0]))
    >>> project(jnp.array([0.0, 2.0]))  # a half-angle of 45 degrees about the first axis
    Array([1., 1.], dtype=float32)
    """
    for name, value in (("semi_axes", semi_axes), ("viewpoint", viewpoint)):
        check_vector(name, value)
        check_floating_tree(name, value)
    if jnp.shape(semi_axes) != jnp.shape(viewpoint):
        raise ValueError(
            "semi_axes and viewpoint must be vectors of one length, "
            f"got shapes {jnp.shape(semi_axes)} and {jnp.shape(viewpoint)}"
        )
    check_range("semi_axes", semi_axes, 0)
    unit = jnp.max(abs(viewpoint))
    semi_axes, viewpoint = jnp.asarray(semi_axes) / unit, jnp.asarray(viewpoint) / unit
    values, vectors = jnp.linalg.eigh(jnp.diag(semi_axes**2) - jnp.outer(viewpoint, viewpoint))
    if is_concrete(values) and not bool(values[0] < 0):
        raise ValueError(f"viewpoint must lie outside the ellipsoid, got {viewpoint * unit}")
    towards = jnp.where(vectors[:, 0] @ viewpoint > 0, 1, -1)
    vectors = vectors.at[:, 0].multiply(towards)
    return Partial(_project_elliptic_polar, vectors, jnp.maximum(values[1:], 0) / -values[0])


def _project_elliptic_polar(vectors, squares, point):
    """Subtract from `point` its projection onto {Σ a² u² ≤ z₀²}, given eigenvectors and a²."""
    check_point("point", point, vectors.shape[0])
    coordinates = vectors.T @ point
    head, rest = coordinates[0], coordinates[1:]

    def surplus(top):
        return 1 - jnp.sum(squares * (rest / (top + (top - head) * squares)) ** 2)

    top = increasing_root(surplus, jnp.maximum(head, 0), scale.norm(point))
    stretched = top + (top - head) * squares
    tail = rest * top / jnp.where(stretched > 0, stretched, 1)
    return point - vectors @ jnp.concatenate([top[None], tail])
