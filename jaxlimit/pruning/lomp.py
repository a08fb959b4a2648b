"""LOMP: l1 training, one-shot magnitude pruning, and a short fine-tuning of what is left."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxlimit import pruning, training
from jaxlimit._core.weights import Where, is_weight
from jaxlimit.training import Metrics, TrainingConfig, TrainingResult


class PrunedNetwork(NamedTuple):
    """A pruned network, fine-tuned if that was asked for.

    Attributes:
        params: its parameters, 0 where the mask is False.
        state: its other variables, such as the statistics of BatchNorm.
        mask: pytree of Booleans like the parameters, True where not under study.
        history: metrics of the fine-tuning; None if there was none.
    """

    params: PyTree
    state: PyTree
    mask: PyTree
    history: Metrics | None


def prune(
    module: Any,
    dataset: Any,
    trained: TrainingResult,
    ratio: Any,
    *,
    finetune: TrainingConfig | None = None,
    where: Where = is_weight,
) -> PrunedNetwork:
    """Prune an l1-trained network to its weights of greatest magnitude, all layers at once.

    The mask is fixed before the fine-tuning, which starts from the kept weights with velocity 0.
    Costs the mask and the fine-tuning; see `training.fit`.

    Args:
        module: the network, as `training.fit` takes it.
        dataset: images and labels for the fine-tuning.
        trained: result of `training.fit` with l1, of one seed.
        ratio: fraction of the weights kept, in [0, 1].
        finetune: settings of the fine-tuning, of one seed; None leaves the weights as they are.
        where: which leaves are under study; the penalties of `finetune` act on them too.

    Returns:
        A `PrunedNetwork`.

    Raises:
        ValueError: if `ratio` lies outside [0, 1], there are several seeds, or as `training.fit`.

    >>> import flax.linen as nn, numpy as np
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, images, *, train=False):
    ...         return nn.Dense(2)(images.reshape(len(images), -1))
    >>> images = np.arange(128, dtype=np.uint8).reshape(32, 2, 2, 1)
    >>> data = images, (np.arange(32) >= 16).astype(np.int32)
    >>> config = TrainingConfig(epochs=3, learning_rate=0.1, batch_size=8, l1=1e-3)
    >>> pruned = prune(Net(), data, training.fit(Net(), data, config), 0.5, finetune=config)
    >>> sum((leaf != 0).sum() for leaf in pruned.params["Dense_0"].values()).item()
    5
    """
    _check_one_seed(trained, finetune)
    mask = pruning.magnitude_mask(trained.params, ratio, where=where)
    if finetune is None:
        return PrunedNetwork(pruning.apply_mask(trained.params, mask), trained.state, mask, None)
    result = training.fit(
        module,
        dataset,
        finetune,
        start=trained,
        mask=mask,
        where=where,
    )
    return PrunedNetwork(result.params, result.state, mask, result.history)


def _check_one_seed(trained: TrainingResult, finetune: TrainingConfig | None) -> None:
    if np.ndim(trained.history.loss) > 1:
        raise ValueError(
            f"trained must be of one seed, got {len(trained.history.loss)}; "
            "take params, state and history of one of them"
        )
    if finetune is not None and isinstance(finetune.seed, tuple):
        raise ValueError(f"finetune must be of one seed, got {finetune.seed}")
