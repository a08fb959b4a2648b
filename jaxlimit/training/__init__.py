"""Training under an l1 penalty: the loop, evaluation, and the losses for the analysis."""

from jaxlimit._core.extras import require

for _module in ("flax", "optax"):
    require(_module, "train", __name__)

from jaxlimit.training.config import TrainingConfig, learning_rates
from jaxlimit.training.data import Normalization, augment, channel_statistics, normalize
from jaxlimit.training.evaluation import (
    DataLoss,
    Evaluation,
    MinimumDistance,
    distance_from_minimum,
    evaluate,
    make_loss,
)
from jaxlimit.training.history import Metrics
from jaxlimit.training.loop import TrainingResult, fit
from jaxlimit.training.optimizer import adam, l1_weights, reweighted_l1, sam, sgd, soft_threshold
from jaxlimit.training.proximal import ProximalResult, proximal_steps
from jaxlimit.training.sensitivity import sensitivity
from jaxlimit.training.settings import Monitor, Start

__all__ = [
    "DataLoss",
    "Evaluation",
    "Metrics",
    "MinimumDistance",
    "Monitor",
    "Normalization",
    "ProximalResult",
    "Start",
    "TrainingConfig",
    "TrainingResult",
    "adam",
    "augment",
    "channel_statistics",
    "distance_from_minimum",
    "evaluate",
    "fit",
    "l1_weights",
    "learning_rates",
    "make_loss",
    "normalize",
    "proximal_steps",
    "reweighted_l1",
    "sam",
    "sensitivity",
    "sgd",
    "soft_threshold",
]
