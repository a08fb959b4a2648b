"""One Hessian for all contenders: the same weights, images and vector in JAX and in PyTorch.

The peers run as their users run them: in float32, with one batch of all images, which is the
fastest way of PyHessian (it then keeps the graph of the gradient) and saves curvlinops its loop
over batches. BatchNorm's scale and shift are constants on both sides.

The peers are imported where they are used, so `--help` of the scripts works without them.
"""

import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxlimit import curvature, datasets, flatten_weights, models, training
from jaxlimit.spectrum import probe

RESNET_WIDTH = 16
MATMUL_SIZE = 3072


def peer(name: str) -> Any:
    """Import a module of a peer, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        error.add_note("The peers come with the extra: pip install -e '.[experiments,benchmarks]'")
        raise


def torch_networks() -> Any:
    """Import the networks in PyTorch."""
    peer("torch")
    return importlib.import_module("jaxlimit.lab.torch_networks")


class Problem(NamedTuple):
    """A network with its data, twice.

    Attributes:
        loss: `loss(params, batch, state)` in JAX.
        params: its parameters.
        state: BatchNorm statistics.
        batch: images, normalised, and labels.
        vector: what the Hessian is multiplied with, flat.
        model: the same network in PyTorch, in evaluation mode.
        torch_batch: the same images and labels.
    """

    loss: Callable
    params: Any
    state: Any
    batch: tuple[Any, Any]
    vector: Any
    model: Any
    torch_batch: tuple[Any, Any]

    @property
    def dim(self) -> int:
        """Return D."""
        return self.vector.size

    @property
    def stacked(self) -> tuple[Any, Any]:
        """Return the batch as our operators take it, [1, n, ...]."""
        return jax.tree.map(lambda leaf: leaf[None], self.batch)

    def torch_vector(self, vector: Any) -> list:
        """Lay a flat vector out as the tensors that PyTorch's parameters are."""
        tree = flatten_weights(self.params)[1](vector)
        named = torch_networks().to_torch(tree)
        return [named[name] for name, _ in self.studied()]

    def studied(self) -> list:
        """Return names and parameters under study."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]


def make_problem(name: str, num_images: int) -> Problem:
    """Make FC5, or ResNet18 of a quarter of its width, on the first images of CIFAR-10."""
    images, labels, _ = datasets.load("cifar10", "train")
    fields = {"width": RESNET_WIDTH} if name == "resnet18" else {}
    return problem_on(name, images[:num_images], labels[:num_images], **fields)


def problem_on(name: str, images: Any, labels: Any, **fields: Any) -> Problem:
    """Make "fc5" or "resnet18" as initialised, whole or with other fields, on images of 32x32."""
    torch, references = peer("torch"), torch_networks()
    mean, std = training.channel_statistics(images)
    batch = jnp.asarray((images - mean) / std, jnp.float32), jnp.asarray(labels)
    net = models.create(name, num_classes=10, **fields)
    params, state = _split(net.init(jax.random.key(0), batch[0][:1]))
    if name == "resnet18":
        model = references.ResNet(10, stage_sizes=net.stage_sizes, width=net.width)
        torch_images = np.asarray(batch[0]).transpose(0, 3, 1, 2)
    else:
        # Flat images: Flax's order of the pixels is another one than PyTorch's.
        model, torch_images = (
            references.MLP(10, net.widths, 3072),
            batch[0].reshape(len(images), -1),
        )
    references.load(model, params, state.get("batch_stats", {}))
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad = "BatchNorm" not in parameter_name
    dim = flatten_weights(params)[0].size
    torch_batch = torch.tensor(np.array(torch_images)), torch.tensor(np.asarray(labels)).long()
    vector = probe(jax.random.key(1), dim)
    return Problem(training.make_loss(net), params, state, batch, vector, model, torch_batch)


def _split(variables: Any) -> tuple[Any, Any]:
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def matvec(problem: Problem, **settings: Any) -> Any:
    """Make our product."""
    return curvature.hessian_matvec(
        problem.loss, problem.params, problem.stacked, problem.state, **settings
    )


def plain_product(problem: Problem) -> Partial:
    """Make the product that JAX's documentation shows: forward over reverse, all images at once."""

    @jax.jit
    def product(params, batch, state, vector):
        weights, unflatten = flatten_weights(params)
        gradient = jax.grad(lambda w: problem.loss(unflatten(w), batch, state))
        return jax.jvp(gradient, (weights,), (vector,))[1]

    return Partial(product, problem.params, problem.batch, problem.state)


def pyhessian_operator(problem: Problem) -> Any:
    """Make PyHessian's object: it holds the graph of the gradient over the one batch."""
    torch = peer("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer("pyhessian").hessian(
            problem.model, torch.nn.CrossEntropyLoss(), data=problem.torch_batch, cuda=False
        )


def pyhessian_product(operator: Any) -> Callable:
    """Make PyHessian's product, on lists of tensors."""
    product = peer("pyhessian.utils").hessian_vector_product
    return lambda vector: product(operator.gradsH, operator.params, vector)


def pyhessian_density(operator: Any, num_steps: int) -> tuple[list, list]:
    """Run PyHessian's density with one probe; `torch.eig`, which it calls, is gone from PyTorch."""
    operator.model.zero_grad()
    peer("torch").eig = _eig
    (nodes,), (weights,) = operator.density(iter=num_steps, n_v=1)
    return nodes, weights


def _eig(matrix: Any, eigenvectors: bool) -> tuple[Any, Any]:
    del eigenvectors
    values, vectors = peer("torch").linalg.eigh(matrix)
    return values[:, None], vectors


def curvlinops_product(problem: Problem) -> Callable:
    """Make curvlinops' product, on lists of tensors."""
    torch = peer("torch")
    operator = peer("curvlinops").HessianLinearOperator(
        problem.model,
        torch.nn.CrossEntropyLoss(),
        [parameter for _, parameter in problem.studied()],
        [problem.torch_batch],
        check_deterministic=False,
    )
    return lambda vector: operator @ vector


def matfree_quadrature(matvec: Partial, vector: Any, num_steps: int, function: Callable) -> Any:
    """Estimate vᵀ f(H) v / vᵀv by matfree's Lanczos with full reorthogonalisation."""
    funm, decomp = peer("matfree.funm"), peer("matfree.decomp")
    quadrature = funm.monte_carlo_funm_sym(
        funm.dense_funm_sym_eigh(function),
        decomp.tridiag_sym(num_steps, reortho="full"),
    )
    return quadrature(lambda v, matvec: matvec(v), vector, matvec)


def matmuls() -> dict[str, Callable]:
    """Make square matrix products in both precisions, and in PyTorch."""
    torch = peer("torch")
    ones = {t: jnp.ones((MATMUL_SIZE, MATMUL_SIZE), t) for t in ("float32", "bfloat16")}
    multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    in_torch = torch.ones(MATMUL_SIZE, MATMUL_SIZE)
    return {
        "matmul float32": lambda: multiply(ones["float32"]),
        "matmul bfloat16": lambda: multiply(ones["bfloat16"]),
        "matmul float32, PyTorch": lambda: in_torch @ in_torch,
    }


def matmul_rates(seconds: dict[str, dict]) -> dict[str, float]:
    """Return the operations a second of the products that `matmuls` makes."""
    return {n: 2 * MATMUL_SIZE**3 / s["minimum"] for n, s in seconds.items() if "matmul" in n}


def torch_environment() -> dict[str, Any]:
    """Describe PyTorch's side."""
    names = ("torch", "curvlinops-for-pytorch", "pyhessian", "matfree")
    return {name: version(name) for name in names} | {"threads": peer("torch").get_num_threads()}
