"""The identity of a training run, which never continues from another run's checkpoint."""

import dataclasses
import re
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import jax
from jaxtyping import PyTree

from jaxlimit._core.convolutions import narrow_is_fast
from jaxlimit._core.digests import checksum
from jaxlimit._core.programs import CONVOLUTION, has, product_dtypes
from jaxlimit.training.config import TrainingConfig
from jaxlimit.training.network import forward

FORMAT = 1
# Other versions write the same computation in other words.
PROGRAM = f"program of JAX {jax.__version__} and Flax {flax.__version__}"
NARROW = "products of bfloat16 are the faster ones here"
# A checkpoint older than a setting was made with its present default.
DEFAULTS = {"config": {f.name: f.default for f in dataclasses.fields(TrainingConfig)
                       if f.default is not dataclasses.MISSING}}  # fmt: skip


def run_identity(
    module: Any,
    config: TrainingConfig,
    params: PyTree,
    example: tuple,
    penalised: PyTree,
    **arrays: PyTree,
) -> dict:
    """Collect what identifies a run: settings, network, and checksums of its initial arrays.

    A network is identified by its name and by the text of its jaxpr in evaluation mode. This does
    not include what it does in training alone, nor the values of arrays that a function closes
    over.

    Args:
        module: the network.
        config: the settings.
        params: its parameters, for their shapes.
        example: parameters and state of one network, and images, as `forward` takes them.
        penalised: a tree like `params`, True where the penalties act on a leaf.
        **arrays: the initial arrays.
    """
    jaxpr = jax.make_jaxpr(partial(forward, module, train=False))(*example)
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "module": _without_addresses(repr(module)),
        PROGRAM: zlib.crc32(_without_addresses(str(jaxpr)).encode()),
        "params": _by_name(params, lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"),
        "penalised": _by_name(penalised, bool),
        "checksum": {name: checksum(tree) for name, tree in arrays.items()},
        **_measured(jaxpr.jaxpr),
    }


def _measured(jaxpr: Any) -> dict[str, bool]:
    """Return measured choices that affect rounding: a run continues in the form it began in."""
    if jax.default_backend() != "cpu" or not has(jaxpr, CONVOLUTION):
        return {}
    return {NARROW: narrow_is_fast()} if "bfloat16" in product_dtypes(jaxpr) else {}


def _by_name(tree: PyTree, tell: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tell(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _without_addresses(text: str) -> str:
    """Drop the addresses in the text of functions, which differ in every process."""
    return re.sub(r" at 0x\w+", "", text)
