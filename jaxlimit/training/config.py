"""The settings of a training run, checked when made, and the rate of every step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from jaxlimit._core.checks import check_choice, check_count, check_range, check_seed

SCHEDULES = ("constant", "cosine", "multi-step")
L1_METHODS = ("subgradient", "proximal")
L1_MEASURES = ("magnitude", "saliency")
OPTIMIZERS = ("sgd", "adam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Set up SGD with momentum, or Adam, on the mean cross-entropy + l1·‖w‖₁ + ½·l2·‖w‖₂².

    Both penalties act on the leaves that `fit` selects, by default all but the scale and bias of
    normalisation layers (`curvature.is_weight`). With velocity v, rate η, momentum μ and the mean
    gradient g of a batch, one step is

        subgradient   v ← μv + g + l1·sign(w) + l2·w,   w ← w - ηv
        proximal      v ← μv + g + l2·w,                w ← S(w - ηv, η·l1/(1-μ))

    with the soft threshold S(x, t) = sign(x)·max(|x| - t, 0) *after* the momentum step. The factor
    1/(1-μ) in the threshold makes both methods converge to the same minimum, since the velocity of
    a constant gradient is g/(1-μ). The proximal method ends with exact zeros. With the subgradient,
    a weight that should be 0 fluctuates around it at the scale η·l1/(1-μ), which vanishes under a
    cosine schedule but not under a constant one.

    With `optimizer="adam"` the sum g + l1·sign(w) + l2·w goes through Adam (Kingma, Ba 2015,
    β₁ = μ, β₂ = 0.999) in place of the velocity. It has no proximal form here.

    Args:
        epochs: passes over the training images. An epoch has `num_images // batch_size` steps in a
            new random order; the images left over (others each epoch) are skipped.
        batch_size: images a step.
        learning_rate: η after the warm-up.
        schedule: "constant"; "cosine", η·½(1 + cos πs) with s the share done of the steps after
            the warm-up; "multi-step", multiplied by `decay` at each of `milestones`.
        milestones: epochs, counted from the start of training, at which "multi-step" decays.
        decay: the factor of "multi-step".
        warmup_epochs: epochs in which the rate rises linearly, from η/steps to η.
        momentum: μ in [0, 1).
        optimizer: "sgd" or "adam".
        l1: strength of the l1 penalty.
        l1_method: "subgradient" (as in the paper) or "proximal".
        l1_delta: δ of a reweighted l1: the penalty of a weight is l1·|w|/(|v| + δ), v its value
            when the epoch began (`l1_weights`; Candès, Wakin, Boyd 2008). 0 is plain l1.
        l1_by: the measure of size in a reweighted l1: "magnitude"; or "saliency", with r·|w| in
            place of |w|, r = √(h/h̄) from one probe of the curvature's diagonal h on the first batch
            of each epoch (`sensitivity`), which costs one more gradient an epoch.
        l2: strength of the l2 penalty.
        sam_radius: r of sharpness-aware minimisation (Foret, Kleiner, Mobahi, Neyshabur 2021): g is
            taken not at w but at w + r·g/‖g‖, g/‖g‖ the direction of the batch's gradient at w over
            all parameters. Two gradients a step; 0 leaves it out.
        augment: shift each image by up to 4 pixels (black beyond the edge) and flip it left to
            right with probability ½, at random each time.
        accumulate: number of slices of a batch, whose gradients are computed in turn and averaged,
            to save memory; BatchNorm sees the slices one by one.
        seed: one integer, or a tuple of them to train several networks at once by `vmap`; every
            array of the result then gains a leading axis.

    Raises:
        TypeError: if a field has the wrong type.
        ValueError: if a field is out of range or does not suit another.

    >>> TrainingConfig(epochs=2, learning_rate=0.1, schedule="cosine").batch_size
    128
    """

    epochs: int
    learning_rate: float
    batch_size: int = 128
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    warmup_epochs: int = 0
    momentum: float = 0.9
    optimizer: str = "sgd"
    l1: float = 0.0
    l1_method: str = "subgradient"
    l1_delta: float = 0.0
    l1_by: str = "magnitude"
    l2: float = 0.0
    sam_radius: float = 0.0
    augment: bool = False
    accumulate: int = 1
    seed: int | tuple[int, ...] = 0

    def __post_init__(self):
        # Python's own numbers, since the JSON of a checkpoint takes none of NumPy's.
        for name in ("epochs", "batch_size", "accumulate", "warmup_epochs"):
            count = check_count(name, getattr(self, name), 0 if name == "warmup_epochs" else 1)
            object.__setattr__(self, name, count)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("l1_method", self.l1_method, L1_METHODS)
        check_choice("l1_by", self.l1_by, L1_MEASURES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if (self.optimizer, self.l1_method) == ("adam", "proximal"):
            raise ValueError('l1_method must be "subgradient" with the optimizer "adam"')
        for name in ("learning_rate", "momentum", "l1", "l1_delta", "l2", "decay", "sam_radius"):
            object.__setattr__(self, name, _check_finite(name, getattr(self, name)))
        if self.l1_by == "saliency" and not self.l1_delta:
            raise ValueError('l1_by="saliency" needs an l1_delta above 0, got 0')
        check_range("learning_rate", self.learning_rate, 0, open_low=True)
        check_range("decay", self.decay, 0, 1, open_low=True)
        if self.momentum >= 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not isinstance(self.augment, bool):
            raise TypeError(f"augment must be True or False, got {self.augment!r}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size {self.batch_size}, got {self.accumulate}"
            )
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs {self.epochs}, got {self.warmup_epochs}"
            )
        self._check_milestones()
        self._check_seeds()

    def _check_milestones(self):
        if not isinstance(self.milestones, tuple | list):
            raise TypeError(f"milestones must be a tuple of epochs, got {self.milestones!r}")
        if (self.schedule == "multi-step") != bool(self.milestones):
            raise ValueError(
                'milestones must be given with schedule "multi-step" and with no other, got '
                f"{self.milestones!r} with {self.schedule!r}"
            )
        epochs = [check_count("milestones", epoch) for epoch in self.milestones]
        ends = (self.warmup_epochs, *epochs, self.epochs)
        if epochs and list(ends) != sorted(set(ends)):
            raise ValueError(
                f"milestones must increase, after the warm-up of {self.warmup_epochs} and before "
                f"the end at {self.epochs} epochs, got {self.milestones!r}"
            )
        object.__setattr__(self, "milestones", tuple(epochs))

    def _check_seeds(self):
        if isinstance(self.seed, tuple | list):
            seeds = tuple(check_seed("seed", seed) for seed in self.seed)
            if not seeds or len(set(seeds)) < len(seeds):
                raise ValueError(f"seed must hold distinct integers, got {self.seed!r}")
            object.__setattr__(self, "seed", seeds)
        else:
            object.__setattr__(self, "seed", check_seed("seed", self.seed))


def _check_finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value}")
    return float(value)


def learning_rates(
    config: TrainingConfig, steps_per_epoch: int
) -> Float[np.ndarray, "epochs steps"]:
    """Return the rate of every step of a run.

    Args:
        config: the settings.
        steps_per_epoch: steps of an epoch.

    Returns:
        The rates [epochs, steps], float32.

    >>> config = TrainingConfig(epochs=2, learning_rate=1.0, schedule="cosine")
    >>> learning_rates(config, 2).round(3).tolist()
    [[1.0, 0.854], [0.5, 0.146]]
    """
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    peak = config.learning_rate
    if config.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, total - warmup)
    else:
        drops = {epoch * steps_per_epoch - warmup: config.decay for epoch in config.milestones}
        schedule = optax.piecewise_constant_schedule(peak, drops)
    if warmup:
        climb = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
        schedule = optax.join_schedules([climb, schedule], [warmup])
    rates = jax.vmap(schedule)(jnp.arange(total))
    return np.asarray(rates, np.float32).reshape(config.epochs, steps_per_epoch)
