"""Find a data set by name and return it as arrays."""

import difflib
import os
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxlimit._core.checks import check_count
from jaxlimit._core.extras import require

_NUM_DIGITS_TRAIN = 1437
_NAMES = ("digits", "cifar10", "cifar100", "tiny_imagenet")
_CONFIGS = ("tiny_imagenet/full", "tiny_imagenet/half")
_FORM = re.compile(r"\w+(/[\w.+-]+)?")
_HOW_TO_GET_TINY_IMAGENET = (
    "Download http://cs231n.stanford.edu/tiny-imagenet-200.zip, then:\n"
    "  python -m jaxlimit.datasets.tiny_imagenet tiny-imagenet-200.zip --data-dir DIR --config full"
)


class Dataset(NamedTuple):
    """Images with their classes.

    Attributes:
        images: pixels in 0..255, RGB or grey; read-only where they are mapped from a file.
        labels: the class of each image, in 0..num_classes-1.
        num_classes: number of classes, also of those that this split lacks.
    """

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int32[np.ndarray, " N"]
    num_classes: int


def to_batches(dataset: Dataset, batch_size: int = 1000) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut a data set into batches (images, labels); the last may be smaller.

    Args:
        dataset: the data set.
        batch_size: examples of a batch.

    Returns:
        The batches.

    Raises:
        TypeError: if `batch_size` is no integer.
        ValueError: if `batch_size` is below 1.

    >>> [len(labels) for _, labels in to_batches(load("digits", "test"), 150)]
    [150, 150, 60]
    """
    batch_size = check_count("batch_size", batch_size)
    images, labels = dataset.images, dataset.labels
    starts = range(0, len(labels), batch_size)
    return [(images[i : i + batch_size], labels[i : i + batch_size]) for i in starts]


def load(name: str, split: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Load one split of an image classification set into arrays.

    `digits` comes with scikit-learn: 8x8 grey images, the first 1,437 for training and the other
    360 for testing, in the published order. The order has whole blocks of writers, so most test
    digits are by other writers than the training ones; every class has 33 to 37 of them. A
    stratified shuffle would only make the test easier. Values 0..16 are scaled to 0..255 and
    rounded, the range of all sets here.

    Every other set is read from a TFDS data directory of ArrayRecord files, without TensorFlow.
    The directories searched are `data_dir`, the environment's `TFDS_DATA_DIR` and
    `~/tensorflow_datasets`; the first that has the set is used. A split is decoded once, by
    threads, into an array file, which later calls map into memory after checking its SHA-256 and
    that the record files have not changed. The array files are in `JAXLIMIT_CACHE_DIR`, or
    `$XDG_CACHE_HOME/jaxlimit`, or `~/.cache/jaxlimit`; the data directory is never written to.
    Costs N·H·W·C bytes of disk, and as much memory while decoding.

    Args:
        name: `digits`, `cifar10`, `cifar100`, `tiny_imagenet`, or the TFDS name of another set of
            8-bit images of one size, as `name` or `name/config`. `tiny_imagenet/half` has half of
            the training images.
        split: `train` or `test`; `train` or `validation` for `tiny_imagenet`.
        data_dir: a TFDS data directory to search first.

    Returns:
        A `Dataset`, in the order of the record files.

    Raises:
        TypeError: if `name` is no string.
        FileNotFoundError: if `data_dir` does not exist, or the set is in none of the directories;
            names them all, and the commands that get it.
        ValueError: if `name` or `split` is unknown, the set is no image classification set, or its
            files are damaged.
        MemoryError: if the split is announced to be larger than the memory of the machine.

    >>> images, labels, num_classes = load("digits", "train")
    >>> images.shape, images.dtype, labels.dtype, num_classes
    ((1437, 8, 8, 1), dtype('uint8'), dtype('int32'), 10)
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r}")
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise FileNotFoundError(f"data_dir must be a folder that exists, got {os.fspath(data_dir)}")
    if name == "digits":
        return _load_digits(split)
    return Dataset(*_require("jaxlimit.datasets._records").read_split(_find(name, data_dir), split))


def _load_digits(split: str) -> Dataset:
    if split not in ("train", "test"):
        raise ValueError(f"split must be one of 'train', 'test', got {split!r}")
    digits = _require("sklearn.datasets").load_digits()
    rows = slice(_NUM_DIGITS_TRAIN) if split == "train" else slice(_NUM_DIGITS_TRAIN, None)
    images = np.rint(digits.images[rows, :, :, None] * (255 / 16)).astype(np.uint8)
    return Dataset(images, digits.target[rows].astype(np.int32), 10)


def _find(name: str, data_dir: str | os.PathLike | None) -> Path:
    """Return the prepared folder of a set, from the first directory that has it."""
    records = _require("jaxlimit.datasets._records")
    places = _places(data_dir)
    base, _, config = name.partition("/")
    folders = [Path(place).expanduser() for place in places.values() if place]
    for folder in folders if _FORM.fullmatch(name) else []:
        if found := records.find_folder(folder, base, config or None):
            return found
    _check_known(name, folders)
    looked = [f"  {what}: {place or 'not given'}" for what, place in places.items()]
    there = sorted({f"{base}/{c}" for f in folders for c in records.find_configs(f, base) if c})
    how = _HOW_TO_GET_TINY_IMAGENET if base == "tiny_imagenet" else records.how_to_get(name)
    raise FileNotFoundError(
        "\n".join([f"{name} was not found in", *looked])
        + (f"\nwhere there is only {', '.join(there)}" if there else "")
        + f"\n{how}\nand give DIR as data_dir or in TFDS_DATA_DIR."
    )


def _places(data_dir: str | os.PathLike | None) -> dict[str, str | os.PathLike | None]:
    return {
        "data_dir": data_dir,
        "TFDS_DATA_DIR": os.environ.get("TFDS_DATA_DIR"),
        "TFDS's default": "~/tensorflow_datasets",
    }


def _check_known(name: str, folders: list[Path]) -> None:
    """Raise with the nearest names unless `name` is one that data could be had for."""
    tfds, records = map(_require, ("tensorflow_datasets", "jaxlimit.datasets._records"))
    known = {*_NAMES, *_CONFIGS, *tfds.list_builders(with_community_datasets=False)}
    for path in (path for folder in folders for path in folder.glob("[!.]*/")):
        configs = records.find_configs(path.parent, path.name)
        known |= {path.name, *(f"{path.name}/{config}" for config in configs if config)}
    # Which configs the other sets of TFDS have is not known here.
    base = name.partition("/")[0]
    if name in known or (_FORM.fullmatch(name) and base in known and base not in _NAMES):
        return
    asked = name.lower().replace("-", "_").strip()
    near = difflib.get_close_matches(asked, sorted(known), n=3)
    meant = f"did you mean {' or '.join(map(repr, near))}?" if near else "nothing comes near it."
    raise ValueError(
        f"unknown data set {name!r}; {meant} "
        f"There are {', '.join(_NAMES)}, and the image sets of TFDS by their names there, "
        "'name' or 'name/config'."
    )


def _require(module: str) -> ModuleType:
    return require(module, "data", "loading data")
