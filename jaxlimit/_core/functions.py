"""A user's functions as static arguments of compiled programs, identified by what they compute.

JAX keeps programs by the identity of the function. So a function that reads a changed attribute or
array would get its old program, and a function without a hash would get an error.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import numpy as np
from jax.extend import core

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Frozen:
    """A function that equals another if both are the same function and trace to the same program.

    Attributes:
        function: the function.
        out: shapes and types of what it returned when it was traced.
    """

    def __init__(self, function: Callable, *args: Any, **named: Any) -> None:
        """Trace `function(*args, **named)` with the present values of everything else it reads.

        Args:
            function: any callable, hashable or not.
            *args: pytrees of arrays, or of their shapes and types.
            **named: the same, by name.
        """
        if isinstance(function, Frozen):
            function = function.function
        # A new function, since JAX remembers the trace of one that it has seen.
        fresh = jax.make_jaxpr(lambda args, named: function(*args, **named), return_shape=True)
        program, self.out = fresh(args, named)
        self.function = function
        self._trace = _Fingerprint()
        self._trace.add_program(program.jaxpr, program.consts)
        self._key = (_identity(function), self._trace.digest())

    @property
    def digest(self) -> str | None:
        """A digest of its program, the same in every process; None if an identity is part of it."""
        return None if self._trace.identities else self._trace.digest().hex()

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the function."""
        return self.function(*args, **named)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Frozen) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Program(Frozen):
    """A function that is only called with arguments of given shapes and types.

    So its trace alone identifies it: a function that is made again in every call, such as a lambda
    in a loop, finds the compiled program of the last call.
    """

    def __init__(self, function: Callable, *args: Any, **named: Any) -> None:
        """Trace the function, as `Frozen` does."""
        super().__init__(function, *args, **named)
        if self.digest is not None:
            self._key = (self.digest,)


def frozen(function: Callable, *args: Any) -> Frozen:
    """Return `function` frozen; one that is already stays as it was."""
    return function if isinstance(function, Frozen) else Frozen(function, *args)


def _identity(function: Callable) -> Any:
    """Return something hashable that is equal for the same function alone."""
    try:
        hash(function)
    except TypeError:
        owner = getattr(function, "__self__", function)
        return id(owner), getattr(function, "__name__", "")
    return function


class _Fingerprint:
    """What a program does and which constants it holds, as a digest."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.identities: list = []  # kept alive, so that their identities are not reused

    def digest(self) -> bytes:
        return self._hash.digest()

    def add_program(self, jaxpr: core.Jaxpr, consts: Any) -> None:
        numbers: dict = {}
        for variable in (*jaxpr.constvars, *jaxpr.invars):
            self._add_text(f"{numbers.setdefault(variable, len(numbers))}:{variable.aval}")
        for constant in consts:
            self._add(constant)
        for equation in jaxpr.eqns:
            self._add_text(equation.primitive.name)
            self._add_atoms(equation.invars, numbers)
            for name, value in sorted(equation.params.items()):
                self._add_text(name)
                self._add(value)
            for variable in equation.outvars:
                self._add_text(f"{numbers.setdefault(variable, len(numbers))}:{variable.aval}")
        self._add_atoms(jaxpr.outvars, numbers)

    def _add_atoms(self, atoms: Any, numbers: dict) -> None:
        for atom in atoms:
            if isinstance(atom, core.Literal):
                self._add(atom.val)
                self._add_text(str(atom.aval))
            else:
                self._add_text(str(numbers[atom]))

    def _add(self, value: Any) -> None:
        if isinstance(value, core.ClosedJaxpr):
            self.add_program(value.jaxpr, value.consts)
        elif isinstance(value, core.Jaxpr):
            self.add_program(value, ())
        elif isinstance(value, tuple | list):
            self._add_text(f"{type(value).__name__} {len(value)}")
            for entry in value:
                self._add(entry)
        elif isinstance(value, set | frozenset):
            self._add(sorted(map(repr, value)))  # their order differs from process to process
        elif isinstance(value, jax.Array | np.ndarray | np.generic):
            self._add_array(value)
        elif hasattr(value, "callback_func"):
            self._add_identity(value.callback_func)
        else:
            # Rules of differentiation are made anew in every trace; their addresses tell nothing.
            self._add_text(_ADDRESS.sub("", repr(value)))

    def _add_array(self, array: Any) -> None:
        if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
            self._add_identity(array)
            return
        if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            self._add_text(str(array.dtype))
            array = jax.random.key_data(array)
        host = np.ascontiguousarray(array)
        self._add_text(f"{host.dtype} {host.shape}")
        if host.dtype == object:
            self._add_identity(array)
            return
        self._hash.update(host.view(np.uint8).data)

    def _add_identity(self, value: Any) -> None:
        self.identities.append(value)
        self._add_text(f"id {id(value)}")

    def _add_text(self, text: str) -> None:
        self._hash.update(f"{text};".encode())
