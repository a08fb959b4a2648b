"""The accelerator benchmark: its rehearsal end to end, and that no case ends the run."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("rich")
pytest.importorskip("tyro")

import accelerator

from jaxlimit.lab.timing import kernel_times


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        RuntimeError("CUDA out of memory"),  # the base of torch.OutOfMemoryError
        FileNotFoundError("no such data"),
    ],
    ids=repr,
)
def test_a_case_that_fails_is_told_and_ends_nothing(error):
    def refused():
        raise error

    assert accelerator.attempt(refused) == f"failed: {type(error).__name__}: {error}"
    assert accelerator.attempt(lambda: {"seconds": 1.0}) == {"seconds": 1.0}


def test_kernels_of_a_call_are_named_with_their_share():
    multiply = jax.jit(lambda a: jnp.sin(a @ a))
    kernels = kernel_times(lambda: multiply(jnp.ones((200, 200))), top=3)
    assert 1 <= len(kernels) <= 3
    assert all(kernel["seconds"] >= 0 for kernel in kernels)
    assert 0 < sum(kernel["share"] for kernel in kernels) <= 1 + 1e-9
    shares = [kernel["share"] for kernel in kernels]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.slow
def test_rehearsal_writes_every_case(tmp_path, capsys):
    accelerator.main(accelerator.Config(tiny=True, output=tmp_path))
    content = json.loads((tmp_path / "accelerator_rehearsal.json").read_text())
    kinds = ("product", "lanczos", "spectrum")
    wanted = {f"{m}, {case}" for m in accelerator.NARROW for case in kinds}
    assert wanted | {"rates", "resnet18, prediction"} <= set(content["cases"])
    for model in ("fc5", "resnet18"):
        peers = content["cases"][f"{model}, peers"]
        if all(importlib.util.find_spec(name) for name in ("torch", "curvlinops", "pyhessian")):
            assert all(peers[who]["minimum"] > 0 for who in ("PyHessian", "curvlinops", "ours"))
        else:
            assert peers.startswith("not available here")
    assert "failed" not in str(content["cases"])
    assert "the figures mean nothing" in capsys.readouterr().out
