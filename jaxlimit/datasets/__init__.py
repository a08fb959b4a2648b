"""Image classification data by name, as plain arrays: `load("cifar10", "train")`."""

from jaxlimit.datasets._load import Dataset, load

__all__ = ["Dataset", "load"]
