"""Pruning in rounds with training between them, as others do it, to compare with one shot.

`gradual` prunes more and more while it trains (Zhu, Gupta 2017); `iterative` goes back to early
weights after each round (Frankle, Dziugaite, Roy, Carbin 2020). Both remove weights by magnitude
over all layers at once, and a removed weight never comes back.
"""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxlimit import training
from jaxlimit._core.checks import check_count, check_range
from jaxlimit._core.weights import Where, flatten_weights, is_weight, selected
from jaxlimit.pruning.lomp import PrunedNetwork
from jaxlimit.pruning.magnitude import num_kept
from jaxlimit.training import TrainingConfig, TrainingResult


def cubic_ratio(progress: Any, ratio: Any, *, initial: Any = 1.0) -> Float[np.ndarray, "..."]:
    """Return the fraction kept on the way to `ratio`, by a cubic schedule.

    For the sparsities s = 1 - ρ, s = s_end + (s_start - s_end)·(1 - t)³, t the progress: fast at
    first, slow at the end.

    Args:
        progress: t, the share done of the time in which weights are removed; clipped to [0, 1].
        ratio: fraction kept at the end, in [0, 1].
        initial: fraction kept at the start, in [0, 1].

    Returns:
        The fraction kept, of the shape of `progress`.

    Raises:
        ValueError: if a ratio lies outside [0, 1].

    >>> cubic_ratio([0.0, 0.5, 1.0], 0.2).tolist()
    [1.0, 0.3, 0.2]

    Zhu, Gupta (2017), section 3.
    """
    check_range("ratio", ratio, 0, 1)
    check_range("initial", initial, 0, 1)
    left = 1 - np.clip(np.asarray(progress, np.float64), 0, 1)
    return ratio + (initial - ratio) * left**3


def gradual(
    module: Any,
    dataset: Any,
    config: TrainingConfig,
    ratio: float,
    *,
    num_rounds: int,
    prune_until: int,
    start: TrainingResult | None = None,
    where: Where = is_weight,
    checkpoint_dir: Any = None,
) -> PrunedNetwork:
    """Prune while training, after every few epochs, by a cubic schedule.

    The first `prune_until` epochs are divided into `num_rounds` rounds of whole epochs, as equal as
    possible. Each round ends with removing the weights of least magnitude, down to the fraction
    `cubic_ratio`; after the last, `ratio` is kept, and the remaining epochs train it. Rates and the
    order of images are those of one run of `config`; unlike in the paper, the velocity starts at 0
    after each round. Costs one training and a mask a round; see `training.fit`.

    Args:
        module: the network, as `training.fit` takes it.
        dataset: images and labels.
        config: settings of the whole training, of one seed.
        ratio: fraction of the weights kept at the end, in [0, 1].
        num_rounds: how often weights are removed.
        prune_until: the epoch after which no more are removed, from `num_rounds` to `epochs`.
        start: the network to start from; by default a Linen module is initialised from the seed.
        where: which leaves are under study; the penalties act on them too.
        checkpoint_dir: a folder for the newest checkpoint of each round, from which the same call
            continues.

    Returns:
        A `PrunedNetwork`; its history is that of all epochs.

    Raises:
        ValueError: if an argument is out of range or there are several seeds, or as `training.fit`.

    Zhu, Gupta (2017), section 3.
    """
    _check_config(config)
    check_range("ratio", ratio, 0, 1)
    check_count("num_rounds", num_rounds)
    if not num_rounds <= check_count("prune_until", prune_until) <= config.epochs:
        raise ValueError(
            f"prune_until must lie between num_rounds {num_rounds} and epochs {config.epochs}, "
            f"got {prune_until}"
        )
    ends = [round(prune_until * i / num_rounds) for i in range(num_rounds + 1)]
    rounds = _Rounds(module, dataset, config, where, checkpoint_dir)
    network, mask, histories = start, None, []
    for i, (begin, end) in enumerate(itertools.pairwise(ends), 1):
        network = rounds.fit(f"round-{i}", network, mask, (begin, end))
        histories.append(network.history)
        kept = cubic_ratio(i / num_rounds, ratio)
        mask = shrink_mask(network.params, mask, kept, where=where)
    network = rounds.fit("after", network, mask, (prune_until, config.epochs))
    history = jax.tree.map(lambda *parts: np.concatenate(parts), *histories, network.history)
    return PrunedNetwork(network.params, network.state, mask, history)


def iterative(
    module: Any,
    dataset: Any,
    config: TrainingConfig,
    ratio: float,
    *,
    num_rounds: int,
    rewind_epoch: int,
    start: TrainingResult | None = None,
    where: Where = is_weight,
    checkpoint_dir: Any = None,
) -> list[PrunedNetwork]:
    """Prune a trained network, rewind what is kept to an early epoch, train again, and repeat.

    The network is trained to the end. Round i keeps the largest ratio^(i/num_rounds) of all
    weights, resets them and the state to their values at `rewind_epoch`, and trains them from there
    to the end, with the rates and the order of images of the first training. Costs num_rounds + 1
    trainings, all but the first without the epochs up to `rewind_epoch`; see `training.fit`.

    Args:
        module: the network, as `training.fit` takes it.
        dataset: images and labels.
        config: settings of every training, of one seed.
        ratio: fraction of the weights kept after the last round, in (0, 1].
        num_rounds: how often to prune.
        rewind_epoch: the epoch to rewind to, below `epochs`; 0 is the initialisation, as in the
            lottery ticket hypothesis.
        start: the network to start from; by default a Linen module is initialised from the seed.
        where: which leaves are under study; the penalties act on them too.
        checkpoint_dir: a folder for the newest checkpoint of each training, from which the same
            call continues.

    Returns:
        A trained `PrunedNetwork` for each round.

    Raises:
        ValueError: if an argument is out of range or there are several seeds, or as `training.fit`.

    Frankle, Dziugaite, Roy, Carbin (2020), algorithm 2.
    """
    _check_config(config)
    check_range("ratio", ratio, 0, 1, open_low=True)
    check_count("num_rounds", num_rounds)
    if check_count("rewind_epoch", rewind_epoch, 0) >= config.epochs:
        raise ValueError(f"rewind_epoch must be below epochs {config.epochs}, got {rewind_epoch}")
    rounds = _Rounds(module, dataset, config, where, checkpoint_dir)
    early = rounds.fit("early", start, None, (0, rewind_epoch))
    rest = (rewind_epoch, config.epochs)
    trained, mask, found = rounds.fit("dense", early, None, rest), None, []
    for i in range(1, num_rounds + 1):
        mask = shrink_mask(trained.params, mask, ratio ** (i / num_rounds), where=where)
        trained = rounds.fit(f"round-{i}", early, mask, rest)
        found.append(PrunedNetwork(trained.params, trained.state, mask, trained.history))
    return found


def shrink_mask(
    params: PyTree, mask: PyTree | None, ratio: Any, *, where: Where = is_weight
) -> PyTree:
    """Shrink a mask to its weights of greatest magnitude, a fraction `ratio` of all weights.

    Args:
        params: pytree of the weights.
        mask: pytree of Booleans like `params`; None is the mask of all weights.
        ratio: fraction of all weights under study kept, in [0, 1].
        where: which leaves are under study; the others are kept.

    Returns:
        A pytree of Booleans like `params`. Under study ⌊ratio · D + ½⌋ are True, or as many as
        `mask` keeps if that is fewer; none where `mask` is False, even if kept weights are 0.

    Raises:
        TypeError: as `magnitude_mask`.
        ValueError: as `magnitude_mask`, or if `mask` has another structure than `params`.

    >>> import jax.numpy as jnp
    >>> mask = jnp.array([False, True, True, True])
    >>> shrink_mask(jnp.array([9.0, 0.0, 2.0, 1.0]), mask, 0.75).tolist()
    [False, True, True, True]
    >>> shrink_mask(jnp.array([9.0, 0.0, 2.0, 1.0]), mask, 0.5).tolist()
    [False, False, True, True]
    """
    check_range("ratio", ratio, 0, 1)
    weights, unflatten = flatten_weights(params, where)
    kept = np.ones(weights.size, bool)
    if mask is not None:
        marks = jax.tree.map(lambda w, m: jnp.asarray(m, jnp.result_type(w)), params, mask)
        kept = np.asarray(flatten_weights(marks, where)[0]) > 0
    rank = np.where(kept, np.abs(np.asarray(weights, np.float64)), -1.0)
    largest = np.argsort(-rank, kind="stable")[: int(num_kept(weights.size, ratio))]
    keep = np.zeros(weights.size, bool)
    keep[largest] = kept[largest]
    marks = unflatten(jnp.asarray(keep, weights.dtype))
    studied = jax.tree.unflatten(jax.tree.structure(params), selected(params, where))
    return jax.tree.map(
        lambda mark, on: mark > 0 if on else jnp.ones(jnp.shape(mark), bool), marks, studied
    )


class _Rounds:
    """Parts of one training, each from a given network and mask."""

    def __init__(self, module, dataset, config, where, checkpoint_dir) -> None:
        self._told = (module, dataset, config)
        self._where, self._folder = where, None if checkpoint_dir is None else Path(checkpoint_dir)

    def fit(self, name, network, mask, between) -> TrainingResult:
        folder = None if self._folder is None else self._folder / name
        return training.fit(
            *self._told,
            start=network,
            mask=mask,
            where=self._where,
            between=between,
            monitor=training.Monitor(checkpoint_dir=folder),
        )


def _check_config(config: TrainingConfig) -> None:
    if isinstance(config.seed, tuple):
        raise ValueError(f"config must be of one seed, got {config.seed}")
