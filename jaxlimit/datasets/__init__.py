"""Image classification data by name, as plain arrays: `load("cifar10", "train")`."""

from jaxlimit.datasets._load import Dataset, load, to_batches

__all__ = ["Dataset", "load", "to_batches"]
