"""The settings of a run of the main job."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxlimit import models
from jaxlimit._core.digests import of_json
from jaxlimit.lab.content import build, plain
from jaxlimit.training import TrainingConfig

# Command lines show the settings inside of settings without a prefix.
FLAT = tyro.conf.arg(name="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(TrainingConfig):
    """How the network is trained; by default FC5 on digits to its l1 minimum."""

    epochs: int = 400
    learning_rate: float = 0.05
    schedule: Literal["constant", "cosine", "multi-step"] = "cosine"
    l1: float = 3e-4
    l1_method: Literal["subgradient", "proximal"] = "subgradient"
    optimizer: Literal["sgd", "adam"] = "sgd"
    seed: tyro.conf.Suppress[int] = 0  # a run has its own


TRAINING = tuple(field.name for field in dataclasses.fields(Training))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Train a network with l1, predict how far it can be pruned, prune it, and compare."""

    model: str = "fc5"
    """One of fc5, fc12, fc3, alexnet, vgg16, resnet18, resnet50, vit, cnn."""
    dataset: str = "digits"
    """digits, cifar10, cifar100, tiny_imagenet, or a TFDS name."""
    data_dir: Path | None = None
    """TFDS data directory; else TFDS_DATA_DIR, else TFDS's own default."""
    training: Annotated[Training, FLAT] = dataclasses.field(default_factory=Training)
    training_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of training; weights, and all that is measured afterwards, are float32."""
    max_images: int | None = None
    """For trials: use only the first so many training images and test images."""
    images_per_class: int | None = None
    """Use only the first so many training images of each class."""
    num_steps: int = 256
    """Greatest Lanczos depth of a probe."""
    num_probes: int = 1
    num_gap_steps: int = 128
    """Lanczos depth on the removed weights, for the gap."""
    tolerance: float = 0.1
    """Stop Lanczos at 128, 256, 512, ... steps where the interval is this share of the prediction;
    0 takes all steps."""
    images_at_once: int = 1000
    """Images a batch in all that is measured after training; bounds the memory."""
    hessian_images: int = 10_000
    """Training images in the Hessian, from the first on; at most all."""
    product_dtype: Literal["float32", "bfloat16"] = "float32"
    """Operands of the Hessian's matrix products; they accumulate in float32."""
    checkpoint_every: int = 64
    """Lanczos steps of a probe between checkpoints."""
    num_ratios: int = 200
    """Ratios in the sweep, spaced evenly in the logarithm."""
    smallest_ratio: float = 1e-4
    accuracy_tolerance: float = 0.01
    """Loss of test accuracy that the limit by accuracy tolerates."""
    find_mask: bool = True
    """Search for the smallest mask within ε, and certify how few weights no mask can go below."""
    layer_steps: int = 0
    """Lanczos steps of each layer's own limit, beside what masks keep of it; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Raise now what a run would raise after its training."""
        models.create(self.model, num_classes=2)
        least = dict.fromkeys(("num_steps", "num_probes", "num_gap_steps", "images_at_once",
                               "hessian_images", "checkpoint_every"), 1)  # fmt: skip
        least |= {"num_ratios": 3, "tolerance": 0, "accuracy_tolerance": 0, "layer_steps": 0}
        few = ("max_images", "images_per_class")  # negative ones would drop the last images
        least |= {name: 1 for name in few if getattr(self, name) is not None}
        for name, minimum in least.items():
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        if self.accuracy_tolerance > 1:
            raise ValueError(f"accuracy_tolerance must be at most 1, got {self.accuracy_tolerance}")
        if not 0 < self.smallest_ratio < 1:
            raise ValueError(f"smallest_ratio must lie in (0, 1), got {self.smallest_ratio}")

    def replace(self, **changes: Any) -> "RunConfig":
        """Change settings, those of the training too, by their names alone."""
        new = {name: changes.pop(name) for name in TRAINING if name in changes}
        trained = dataclasses.replace(self.training, **new)
        return dataclasses.replace(self, training=trained, **changes)

    def train(self, seed: int) -> TrainingConfig:
        """Return the settings of the training of one seed."""
        return dataclasses.replace(self.training, seed=seed)

    def network(self) -> dict[str, Any]:
        """Select the settings that decide the trained network, of any one seed."""
        names = ("model", "dataset", "training", "training_dtype", "max_images")
        # Left out where it is not given, so that folders keep the names that they had before it.
        names += ("images_per_class",) * (self.images_per_class is not None)
        return plain({name: getattr(self, name) for name in names})

    def name(self) -> str:
        """Name the run folder by network, data and a digest of the training."""
        digest = of_json(self.network())[:8]
        return f"{self.model}-{self.dataset}-{digest}".replace("/", "-")


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Put the settings of the training, which row files hold beside the others, under their own."""
    inner = {name: value for name, value in values.items() if name in TRAINING}
    outer = {name: value for name, value in values.items() if name not in TRAINING}
    return outer | {"training": outer.get("training", {}) | inner}


def read_config(values: dict[str, Any], where: str) -> RunConfig:
    """Make the settings of a run from flat or nested values; `where` they stand is for messages."""
    return build(RunConfig, nested(values), where)


# What `--smoke` runs on: shows that a command runs, and nothing else.
TRIAL = RunConfig(model="fc3", max_images=192).replace(epochs=20, l1=1e-3)
