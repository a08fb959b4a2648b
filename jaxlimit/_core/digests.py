"""Digests of JSON, of arrays and of trees of arrays, which identify files and runs."""

import hashlib
import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num, PyTree, UInt32


def of_json(content: dict[str, Any]) -> str:
    """Return the SHA-256 of an object, independent of layout and of the order of names."""
    # Through JSON once, since it turns tuples into lists and the names of entries into text.
    content = json.loads(json.dumps(content, allow_nan=False))
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def fingerprint(*trees: Any) -> str:
    """Return a digest of 16 letters: of arrays, and of the text of everything else."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(without_keys(trees)):
        if hasattr(leaf, "dtype"):
            array = np.asarray(leaf)
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()[:16]


def checksum(tree: PyTree) -> int:
    """Return a checksum of the values of arrays."""
    total = 0
    for leaf in jax.tree.leaves(without_keys(tree)):
        total = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, total)
    return total


def without_keys(tree: PyTree) -> PyTree:
    """Replace random keys, which a network with dropout may keep, by their integers."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def digests(tree: PyTree) -> dict[str, int]:
    """Return one number for each array, independent of its layout over devices and processes.

    It is the sum mod 2³² of a bijection of every 32 bits, which depends on their place: a change
    of one word always shows, any other but once in 2³². One pass over the memory, no copies.

    >>> digests({"a": jnp.zeros(2)}) == digests({"a": jnp.zeros(3)[:2]})
    True
    >>> digests({"a": jnp.array([1.0, 2.0])}) == digests({"a": jnp.array([2.0, 1.0])})
    False
    """
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _digest_of(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(without_keys(tree))
    }
    return {name: int(digest) for name, digest in found.items()}


def _digest_of(leaf: Any) -> UInt32[Array, ""]:
    if isinstance(leaf, jax.Array):
        return _digest(leaf)
    # As words, since JAX may narrow numbers of 64 bits.
    leaf = np.ascontiguousarray(leaf)
    return _digest(leaf.reshape(-1).view(f"u{min(leaf.itemsize, 4)}"))


@jax.jit
def _digest(array: Num[Array, "..."]) -> UInt32[Array, ""]:
    if jax.typeof(array).memory_space != jax.memory.Space.Host:
        return _sum_of_words(array, 0)

    def add_row(i: Array, total: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(array, i, keepdims=False)
        return total + _sum_of_words(jax.device_put(row, jax.memory.Space.Device), i * row.size)

    return jax.lax.fori_loop(0, len(array), add_row, jnp.uint32(0))


def _sum_of_words(array: Num[Array, "..."], first: Any) -> UInt32[Array, ""]:
    words = _words_of(array)
    # Counted axis by axis, since to flatten a split array would gather it.
    place = jnp.asarray(first).astype(jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        place = place + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride)
    return jnp.sum(_mixed(words, place), dtype=jnp.uint32)


def mixed_words(array: Num[Array, "n ..."], seed: int | None) -> UInt32[Array, "n ..."]:
    """Mix the words of each row of an array with their place in the row, and with a seed.

    Without a seed the rows are taken for words that are mixed already, and mixed alone.
    """
    words = _words_of(array)
    if seed is None:
        return _mixed(words, jnp.uint32(1))
    size = math.prod(words.shape[1:])
    place = jnp.arange(size, dtype=jnp.uint32).reshape(1, *words.shape[1:])
    return _mixed(words, place + np.uint32((seed * 0x27D4EB2F + 1) % 2**32))


def _words_of(array: Num[Array, "..."]) -> UInt32[Array, "..."]:
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    word = f"uint{8 * min(array.dtype.itemsize, 4)}"
    return jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)


def _mixed(words: UInt32[Array, "..."], place: Any) -> UInt32[Array, "..."]:
    # The finaliser of MurmurHash3 (Appleby 2011).
    x = words ^ (place * np.uint32(0x9E3779B1))
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
