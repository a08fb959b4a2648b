"""Training under an l1 penalty: the loop, evaluation, the losses that the analysis starts from."""

from jaxlimit.training.config import TrainingConfig, learning_rates
from jaxlimit.training.data import Normalization, augment, channel_statistics, normalize
from jaxlimit.training.evaluation import DataLoss, Evaluation, evaluate, make_loss
from jaxlimit.training.loop import Metrics, TrainingResult, fit, soft_threshold

__all__ = [
    "DataLoss",
    "Evaluation",
    "Metrics",
    "Normalization",
    "TrainingConfig",
    "TrainingResult",
    "augment",
    "channel_statistics",
    "evaluate",
    "fit",
    "learning_rates",
    "make_loss",
    "normalize",
    "soft_threshold",
]
