"""`Operator`, on which all algorithms work, and checks of its products."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core import sharding
from jaxlimit._core.checks import check_count, is_concrete
from jaxlimit._core.functions import Frozen, Program
from jaxlimit._core.mesh_product import MeshProduct, embed
from jaxlimit._core.origin import PROGRAM, Origin, digest_of

Params = ParamSpec("Params")
Result = TypeVar("Result")

ALL_FINITE = -1

# The reduced precision of products on accelerators would lose orthogonality.
dot = partial(jnp.matmul, precision="highest")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Operator:
    """A symmetric operator on flat vectors that knows its size, type and abilities.

    A pytree: its arrays are operands of `jit`, `vmap` and `scan`, everything else is static. A call
    with a vector makes one product.

    Attributes:
        product: the product, a function from [dim] to [dim]; the arrays of a
            `jax.tree_util.Partial` are operands.
        dim: D, size of its vectors.
        dtype: type of its vectors; None accepts any.
        mesh: devices that share it; None for one device. With a mesh it also accepts vectors padded
            with zeros to a size that the devices divide, and returns the same, sharded.
        traceable: whether it runs under `jit`, `vmap` and `scan`. If not, it reads its data on the
            host during a product, and is called eagerly.
        linearized: whether it keeps a linearisation, so that products repeat no primal pass.
        origin: identifies its data when a run is resumed; without it the program identifies it.

    Raises:
        TypeError: if `dim` is no static int, or `dtype` or what `product` returns is not real
            floating.
        ValueError: if `dim` < 1, or `product` does not map [dim] to [dim].

    >>> import jax.numpy as jnp
    >>> double = Operator(lambda v: 2 * v, dim=3)
    >>> double(jnp.ones(3))
    Array([2., 2., 2.], dtype=float32)
    >>> double.restrict([True, False, True])
    Operator(dim=2)
    """

    product: Any
    dim: int = field(metadata={"static": True})
    dtype: Any = field(default=None, metadata={"static": True})
    mesh: Mesh | None = field(default=None, metadata={"static": True})
    traceable: bool = field(default=True, metadata={"static": True})
    linearized: bool = field(default=False, metadata={"static": True})
    origin: Origin | None = field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        # Transformations rebuild operators with placeholders, whose product is wrapped already.
        if isinstance(self.product, MeshProduct | Product) or not callable(self.product):
            return
        set_field = partial(object.__setattr__, self)
        set_field("dim", check_count("dim", self.dim))
        if self.mesh is not None:
            set_field("mesh", sharding.check_mesh(self.mesh))
        function = self.product if isinstance(self.product, Partial) else Partial(self.product)
        set_field("product", Product(function, self.dim))
        if self.dtype is not None:
            set_field("dtype", check_dtype(self.dtype))
            self._check_product()

    def __call__(self, vector: Float[Array, "D"]) -> Float[Array, "D"]:
        """Multiply one vector.

        Raises:
            TypeError: if `vector` has another type, or the operator is not traceable and this is
                under `jit`, `vmap` or `scan`.
            ValueError: if `vector` has another shape.
        """
        if not self.traceable and not is_concrete(vector):
            raise TypeError(
                "matvec reads batches from an iterator on the host and cannot run under jit, vmap "
                "or scan: call it eagerly, or stack the batches and use hessian_matvec"
            )
        self._check_vector(vector)
        return self.product(vector).astype(vector.dtype)

    def restrict(self, mask: Bool[Array | np.ndarray, "D"]) -> "Operator":
        """Return the principal submatrix on the entries where `mask` is True.

        See `curvature.restrict`.
        """
        chosen = np.asarray(mask)
        if chosen.dtype != bool:
            raise TypeError(
                f"mask must be boolean, True where a weight is studied, got {chosen.dtype}"
            )
        if chosen.shape != (self.dim,) or not chosen.any():
            raise ValueError(
                f"mask must be flat, [{self.dim}], and select at least one entry, "
                f"got shape {chosen.shape} with {chosen.sum()} selected"
            )
        index = jnp.asarray(np.flatnonzero(chosen), jnp.int32)
        if isinstance(self.product, MeshProduct):
            product = self.product.restrict(index)
        else:
            product = self.product.restrict(index, compiled=self.traceable)
        origin = None if self.origin is None else self.origin.restricted(index)
        return replace(self, product=product, dim=index.size, origin=origin)

    def content(self) -> dict[str, Any]:
        """Return digests that identify it: those of its origin, or of its program and arrays."""
        if self.origin is not None:
            return self.origin.digests()
        function = getattr(self.product, "function", None)
        frozen = getattr(function, "func", None)
        if not isinstance(frozen, Frozen) or frozen.digest is None:
            return {}
        return {PROGRAM: frozen.digest, "arrays": digest_of(jax.tree.leaves(function))}

    def pad(self, size: int) -> "Operator":
        """Return the operator for vectors of `size` entries, zero past its own."""
        if size in (self.dim, sharding.padded_size(self.dim, self.mesh)):
            return self
        if size < self.dim:
            raise ValueError(f"matvec must map [{size}] to [{size}], it maps [{self.dim}]")
        product = Product(Partial(_Static(_padded, self.dim), self), size)
        return replace(self, product=product, dim=size, mesh=None)

    def _check_vector(self, vector: Any) -> None:
        shape, padded = getattr(vector, "shape", None), sharding.padded_size(self.dim, self.mesh)
        if shape not in ((self.dim,), (padded,)):
            on_mesh = f", or ({padded},) padded for the mesh" if padded != self.dim else ""
            raise ValueError(
                f"vector must have shape ({self.dim},){on_mesh}, "
                f"got {vector if shape is None else shape}"
            )
        check_same_dtype(jnp.result_type(vector), self.dtype)

    def _check_product(self) -> None:
        if not self.traceable:
            return
        dim = self.dim
        result = self._freeze()
        if getattr(result, "shape", None) != (dim,):
            raise ValueError(f"matvec must map [{dim}] to [{dim}], it returns {result}")
        if not jnp.issubdtype(result.dtype, jnp.floating):
            raise TypeError(f"matvec must return real floating entries, got dtype {result.dtype}")

    def _freeze(self) -> Any:
        """Freeze the product with what it reads now; return the shape and type of its result."""
        old, vector = self.product.function, jax.ShapeDtypeStruct((self.dim,), self.dtype)
        frozen = Program(old.func, *old.args, vector, **old.keywords)
        function = Partial(frozen, *old.args, **old.keywords)
        object.__setattr__(self, "product", Product(function, self.dim))
        return frozen.out

    def __repr__(self) -> str:
        told = [f"dim={self.dim}"]
        if self.dtype is not None:
            told.append(f"dtype={self.dtype}")
        if self.mesh is not None:
            told.append(f"mesh={dict(self.mesh.shape)}")
        told += [] if self.traceable else ["traceable=False"]
        told += ["linearized=True"] if self.linearized else []
        return f"Operator({', '.join(told)})"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Product:
    """A function's product with vectors of `dim` entries; those of padded ones end in zeros."""

    function: Callable
    dim: int = field(metadata={"static": True})

    def __call__(self, vector: Array) -> Array:
        if vector.size == self.dim:
            return self.function(vector)
        return _padded(self.dim, self.function, vector)

    def restrict(self, index: Int[Array, "k"], *, compiled: bool) -> "Product":
        restricted = _restricted_compiled if compiled else _restricted
        return Product(Partial(_Static(restricted, self.dim), self.function, index), index.size)


@dataclass(frozen=True)
class _Static:
    """A function with its first argument, which is static, given."""

    function: Callable
    first: Any

    def __call__(self, *args: Any) -> Any:
        return self.function(self.first, *args)


def _padded(dim: int, function: Callable, vector: Array) -> Array:
    return jnp.pad(function(vector[:dim]), (0, vector.size - dim))


def _restricted(dim: int, function: Callable, index: Array, vector: Array) -> Array:
    return function(embed(dim, index, vector))[index]


_restricted_compiled = partial(jax.jit, static_argnums=0)(_restricted)


def prepare(
    matvec: Any,
    dim: int | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    instead: str | None = None,
) -> Operator:
    """Return `matvec` as an operator with `dtype`, checked against what it maps.

    Arguments that an `Operator` knows may be left out, and must agree if given. For other callables
    `dim` is needed, and `dtype` is float32 by default.

    Args:
        matvec: an `Operator`, or a callable from [dim] to [dim].
        dim: size of the vectors.
        dtype: type of the vectors.
        mesh: devices that share the vectors.
        instead: for an algorithm that compiles its products: advice for an operator that loops on
            the host.

    Raises:
        TypeError: if `dim` is missing or no static int, `dtype` or what `matvec` returns is not
            real floating, or `matvec` is on vectors of another type.
        ValueError: if `dim` < 1, `matvec` does not map [D] to [D] or lies on another mesh, or
            64-bit floats are asked for where JAX has them switched off.
    """
    dtype = None if dtype is None else check_dtype(dtype)
    dim = None if dim is None else check_count("dim", dim)
    if not isinstance(matvec, Operator):
        if not callable(matvec):
            raise TypeError(
                "matvec must be an Operator or a function of one vector, "
                f"got {type(matvec).__name__}"
            )
        if dim is None:
            raise TypeError("dim must be given, an int, if matvec is no Operator; got None")
        return Operator(matvec, dim, dtype or jnp.dtype(jnp.float32), mesh)
    operator = matvec
    if not operator.traceable and instead is not None:
        raise TypeError(
            "matvec reads batches from an iterator on the host and cannot be compiled: "
            f"{instead}, or stack the batches and use curvature.hessian_matvec"
        )
    if dim is not None and operator.dim != dim:
        raise ValueError(f"matvec must map [{dim}] to [{dim}], it maps [{operator.dim}]")
    if dtype is not None:
        check_same_dtype(dtype, operator.dtype)
    operator = _on_mesh(operator, mesh)
    if operator.dtype is not None:
        return operator
    operator = replace(operator, dtype=dtype or jnp.dtype(jnp.float32))
    operator._check_product()
    return operator


def _on_mesh(operator: Operator, mesh: Mesh | None) -> Operator:
    if mesh is None or operator.mesh == mesh:
        return operator
    if operator.mesh is not None:
        raise ValueError(f"mesh must be that of matvec, {operator.mesh}, got {mesh}")
    return replace(operator, mesh=mesh)


def takes_operator(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Let a function of an operator, its first argument, do without its keyword `mesh`.

    The mesh is then that of the operator; see `sharding.takes_mesh` for the rest.
    """
    on_mesh = cast(Callable, sharding.takes_mesh(function))

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        matvec = args[0] if args else kwargs.get("matvec")
        if isinstance(matvec, Operator) and kwargs.get("mesh") is None:
            kwargs["mesh"] = matvec.mesh
        return on_mesh(*args, **kwargs)

    return wrapper


def returns_local(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Let a function of an operator, its first argument, return arrays that any code can use.

    Arrays computed on the mesh of an operator stay on it and do not mix with plain arrays.
    """

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        matvec = args[0] if args else kwargs.get("matvec")
        mesh = matvec.mesh if isinstance(matvec, Operator) else None
        with sharding.on(mesh):
            return cast(Result, sharding.local(function(*args, **kwargs), mesh))

    return wrapper


def check_same_dtype(found: Any, dtype: Any) -> None:
    """Raise unless vectors of type `found` are those of an operator on `dtype`, None for any."""
    if dtype is not None and found != dtype:
        raise TypeError(f"vector must have dtype {dtype}, that of the weights, got {found}")


def check_dtype(dtype: Any) -> jnp.dtype:
    """Return `dtype`, or raise unless it is a real floating type that JAX now supports."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be real floating, got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype {dtype} needs 64-bit JAX: set jax_enable_x64, or use float32")
    return dtype


def check_factorable(dtype: jnp.dtype) -> None:
    """Raise unless matrices of this type can be factored."""
    if dtype.itemsize < 4:
        raise TypeError(f"dtype must be float32 or float64, which can be factored, got {dtype}")


def apply(operator: Operator, vector: Array) -> Array:
    """Make one product, compiled once for all operators of a kind."""
    return _apply(operator, vector) if operator.traceable else operator(vector)


@jax.jit
def _apply(operator: Operator, vector: Array) -> Array:
    return operator(vector)


def map_blocks(function: Callable, inputs: Any, block_size: int) -> Any:
    """Map over the first axis, `block_size` entries at once (1 needs no batching rule)."""
    if block_size == 1:
        return jax.lax.map(function, inputs)
    return jax.lax.map(function, inputs, batch_size=block_size)


def first_non_finite(products: Array) -> Int[Array, ""]:
    """Return the index of the first row with NaN or infinity, `ALL_FINITE` if there is none."""
    return first_failure(jnp.isfinite(products).reshape(len(products), -1).all(1))


def first_failure(finite: Bool[Array, "n"]) -> Int[Array, ""]:
    """Return the index of the first False, `ALL_FINITE` if there is none."""
    return jnp.where(finite.all(), ALL_FINITE, jnp.argmin(finite).astype(jnp.int32))


def earlier_failure(failed: Array, later: Array, offset: Any) -> Int[Array, ""]:
    """Join the first failures of two runs of products, the second counted from `offset`."""
    later = jnp.where(later == ALL_FINITE, ALL_FINITE, later + offset)
    return jnp.where(failed == ALL_FINITE, later, failed)


def check_products(failed: Int[Array, ""]) -> None:
    """Raise where a product is known to have been NaN or infinite; traced values pass unchecked."""
    if is_concrete(failed) and int(failed) != ALL_FINITE:
        raise FloatingPointError(f"matvec returned NaN or infinity in product {int(failed)}")
