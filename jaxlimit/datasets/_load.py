"""Find a data set by name and return it as arrays."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

_NUM_DIGITS_TRAIN = 1437


class Dataset(NamedTuple):
    """Images with their classes.

    Attributes:
        images: uint8 pixels in 0..255, RGB or grey.
        labels: the class of each image, in 0..num_classes-1.
        num_classes: how many classes there are, seen in this split or not.
    """

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int32[np.ndarray, " N"]
    num_classes: int


def load(name: str, split: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Load one split of an image classification set into arrays."""
    if name == "digits":
        return _load_digits(split)
    return _load_tfds(name, split, data_dir)


def _load_digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    digits = load_digits()
    rows = slice(_NUM_DIGITS_TRAIN) if split == "train" else slice(_NUM_DIGITS_TRAIN, None)
    images = np.rint(digits.images[rows, :, :, None] * (255 / 16)).astype(np.uint8)
    return Dataset(images, digits.target[rows].astype(np.int32), 10)


def _load_tfds(name: str, split: str, data_dir: str | os.PathLike | None) -> Dataset:
    import tensorflow_datasets as tfds

    source = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    features = source.dataset_info.features
    images = np.empty((len(source), *features["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)

    def read(index: int) -> None:
        example = source[index]
        images[index], labels[index] = example["image"], example["label"]

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(source))))
    return Dataset(images, labels, features["label"].num_classes)
