"""Estimators of other libraries for `jaxlimit bench`, each only if it is installed."""

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit import flatten_weights
from jaxlimit.lab.torch_layout import restored


def products(case: Any, vector: Any) -> dict[str, tuple[Callable, Callable]]:
    """Return PyTorch's products of FC5 by name, each with a function that flattens its result."""
    if case.name != "fc5-digits" or not _has("torch"):
        return {}
    torch = importlib.import_module("torch")
    networks = importlib.import_module("jaxlimit.lab.torch_networks")
    pixels = case.batches[0][0, 0].size
    model = networks.load(networks.MLP(10, _widths(case.params), pixels), case.params)
    images, labels = (np.asarray(leaf).reshape(-1, *leaf.shape[2:]) for leaf in case.batches)
    batch = torch.tensor(images.reshape(len(images), -1)), torch.tensor(labels).long()
    names = [name for name, _ in model.named_parameters()]
    named = networks.to_torch(flatten_weights(case.params)[1](vector))
    tangent = [named[name] for name in names]

    def flat(found: Any) -> np.ndarray:
        tensors = {n: t.detach().numpy() for n, t in zip(names, found, strict=True)}
        return np.asarray(flatten_weights(restored(case.params, tensors))[0])

    rows: dict[str, tuple[Callable, Callable]] = {}
    loss = torch.nn.CrossEntropyLoss()
    if _has("curvlinops"):
        linops = importlib.import_module("curvlinops")
        operator = linops.HessianLinearOperator(
            model, loss, list(model.parameters()), [batch], check_deterministic=False
        )
        rows["curvlinops"] = (lambda: operator @ tangent, flat)
    if _has("pyhessian"):
        peers = importlib.import_module("jaxlimit.lab.peers")
        held = importlib.import_module("pyhessian").hessian(model, loss, data=batch, cuda=False)
        product = peers.pyhessian_product(held)
        rows["PyHessian"] = (lambda: product(tangent), flat)
    return rows


def _widths(params: Any) -> list[int]:
    names = sorted((n for n in params if n.startswith("Dense_")), key=lambda n: int(n[6:]))
    return [params[name]["kernel"].shape[1] for name in names]


def traces(matvec: Any, key: Any, dim: int, num_products: int) -> dict[str, Callable]:
    """Return matfree's trace estimators."""
    if not _has("matfree"):
        return {}
    stochtrace = importlib.import_module("matfree.stochtrace")
    like = jnp.ones(dim)
    signs = stochtrace.sampler_signs(like, num=num_products)
    plain = stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_trace(), sampler=signs)
    normals = stochtrace.sampler_normal(like, num=num_products // 2)
    xtrace = stochtrace.estimator_leave_one_out(stochtrace.leave_one_out_xtrace(), sampler=normals)
    return {
        "matfree monte_carlo_trace": partial(jax.jit(plain), matvec, key),
        "matfree leave_one_out_xtrace": partial(jax.jit(xtrace), matvec, key),
    }


def spectra(matvec: Any, key: Any, dim: int, num_steps: int) -> dict[str, Callable]:
    """Return matfree's Lanczos with full reorthogonalisation, read as a Gauss rule."""
    if not _has("matfree"):
        return {}
    tridiagonalize = importlib.import_module("matfree.decomp").tridiag_sym(
        num_steps, reortho="full"
    )

    @jax.jit
    def rule(matvec: Any, key: Any) -> tuple:
        start = jax.random.normal(key, (dim,))
        found = tridiagonalize(lambda v, matvec: matvec(v), start / jnp.linalg.norm(start), matvec)
        nodes, vectors = jnp.linalg.eigh(found.J_small)
        return nodes, vectors[0] ** 2

    return {"matfree tridiag_sym": partial(rule, matvec, key)}


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
