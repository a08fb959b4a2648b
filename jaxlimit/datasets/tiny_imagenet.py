"""A TFDS builder for Tiny ImageNet, from the distributed archive to ArrayRecord, no TensorFlow.

python -m jaxlimit.datasets.tiny_imagenet tiny-imagenet-200.zip --data-dir DIR --config half
"""

import argparse
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxlimit._core.extras import require

for _module in ("cv2", "PIL", "tensorflow_datasets"):
    require(_module, "data", __name__)

import cv2
import tensorflow_datasets as tfds

from jaxlimit.datasets._images import check_size

_NUM_CLASSES = 200
_IMAGES_PER_CLASS = {"full": 500, "half": 250}
_VALIDATION_IMAGES_PER_CLASS = 50
# No file of the set comes near it, however large an archive says that one is.
_MAX_BYTES = 4 << 20
_CLASS, _IMAGE = re.compile(r"n\d{8}"), re.compile(r"\w+\.JPEG")
_Read = Callable[[str], bytes]


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny ImageNet: 200 classes, 64x64 images, 500 for training and 50 for validation of each.

    Classes are numbered by the sorted WordNet ids. The JPEG bytes are kept as distributed, also of
    grey images, which become RGB when read. The distributed test images have no labels and are left
    out.
    """

    name = "tiny_imagenet"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (the name and type are those of TFDS)
        tfds.core.BuilderConfig(name="full", description="All training images."),
        tfds.core.BuilderConfig(
            name="half",
            description="The first 250 of each class's 500 training images; validation whole.",
        ),
    ]

    def __init__(self, *, source: str | os.PathLike | None = None, **kwargs):
        """Bind the archive.

        Args:
            source: `tiny-imagenet-200.zip`, or the folder it unpacks to. Needed to prepare only.
            **kwargs: as every TFDS builder has them.
        """
        self._source = source
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny ImageNet (200 classes, 64x64), its JPEG files as distributed.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=_NUM_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager) -> dict:
        if self._source is None:
            raise ValueError("source must be the Tiny ImageNet zip or folder, got None")
        read = _reader(Path(self._source))
        classes = sorted(read("wnids.txt").decode().split())
        for name in classes:
            _check_name("wnids.txt", _CLASS, name)
        if len(classes) != _NUM_CLASSES:
            raise ValueError(f"wnids.txt names {len(classes)} classes, expected {_NUM_CLASSES}")
        features: Any = self.info.features
        features["label"].names = classes
        config: Any = self.builder_config
        training = _training_labels(read, classes, _IMAGES_PER_CLASS[config.name])
        return {
            "train": self._generate_examples(read, training),
            "validation": self._generate_examples(read, _validation_labels(read, classes)),
        }

    def _generate_examples(self, read: _Read, labels: dict[str, str]) -> Iterator:
        for name, label in labels.items():
            key = Path(name).stem
            yield key, {"id": key, "image": _read_image(read, name), "label": label}


def _reader(source: Path) -> _Read:
    """Return the function that reads a file by its path below the folder of `wnids.txt`."""
    top = "tiny-imagenet-200/"
    if source.is_dir():
        root = source / top if (source / top).is_dir() else source
        open_ = partial(_open_inside, root.resolve())
    elif zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)
        prefix = top if f"{top}wnids.txt" in archive.namelist() else ""
        open_ = lambda name: archive.open(prefix + name)  # noqa: E731
    else:
        raise ValueError(f"source must be a folder or a zip file that is whole, got {source}")

    def read(name: str) -> bytes:
        try:
            with open_(name) as file:
                content = file.read(_MAX_BYTES + 1)
        except _UNREADABLE as error:
            raise ValueError(f"{name} in {source} is missing or damaged: {error}") from error
        if len(content) > _MAX_BYTES:
            raise ValueError(f"{name} in {source} is damaged: it has over {_MAX_BYTES:,} bytes")
        return content

    return read


# RuntimeError is what zipfile raises at an entry marked as encrypted.
_UNREADABLE = (KeyError, OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)


def _open_inside(root: Path, name: str) -> IO[bytes]:
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise OSError(f"it lies outside of the folder, at {path}")
    return path.open("rb")


def _check_name(file: str, form: re.Pattern, name: str) -> None:
    if not form.fullmatch(name):
        raise ValueError(f"{file} must name {form.pattern}, got {name!r}")


def _training_labels(read: _Read, classes: list[str], per_class: int) -> dict[str, str]:
    """Return the class of each training image to be used, by the image's name.

    The box lists name every image, so one that was lost in unpacking does not go unseen.
    """
    labels = {}
    for label in classes:
        boxes = f"train/{label}/{label}_boxes.txt"
        names = {row.split("\t")[0] for row in read(boxes).decode().splitlines()}
        for name in names:
            _check_name(boxes, _IMAGE, name)
        _check_whole(boxes, label, len(names), _IMAGES_PER_CLASS["full"])
        used = sorted(names, key=_number)[:per_class]
        labels |= {f"train/{label}/images/{name}": label for name in used}
    return labels


def _number(name: str) -> int:
    return int(Path(name).stem.rpartition("_")[2])


def _validation_labels(read: _Read, classes: list[str]) -> dict[str, str]:
    annotations, labels = "val/val_annotations.txt", {}
    for row in read(annotations).decode().splitlines():
        name, label, *_ = [*row.split("\t"), ""]
        if label not in classes:
            raise ValueError(f"{annotations} has a row without a known class: {row!r}")
        _check_name(annotations, _IMAGE, name)
        labels[f"val/images/{name}"] = label
    found = Counter(labels.values())
    for label in classes:
        _check_whole(annotations, label, found[label], _VALIDATION_IMAGES_PER_CLASS)
    return labels


def _check_whole(file: str, label: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{file} names {found} images of class {label}, expected {expected}")


def _read_image(read: _Read, name: str) -> bytes:
    """Return the bytes of an image, or raise if they are not one whole 64x64 JPEG."""
    encoded = read(name)
    try:
        check_size(encoded, 64, 64)
    except ValueError as error:
        raise ValueError(f"{name} is not a whole 64x64 JPEG: {error}") from error
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    # A decoder fills in what a cut-off JPEG lacks; only its missing end mark tells.
    if image is None or image.shape[:2] != (64, 64) or not encoded.endswith(b"\xff\xd9"):
        raise ValueError(f"{name} is not a whole 64x64 JPEG")
    return encoded


def prepare(source: str | os.PathLike, data_dir: str | os.PathLike, config: str = "full") -> Path:
    """Write Tiny ImageNet as ArrayRecord files that `jaxlimit.datasets.load` reads.

    Costs about as much disk as the archive, and one pass over it.

    Args:
        source: `tiny-imagenet-200.zip`, or the folder it unpacks to.
        data_dir: the TFDS data directory to write in.
        config: `full`, or `half` for the first 250 training images of each class.

    Returns:
        The folder written; an existing one is left unchanged.

    Raises:
        ValueError: if `source` is no complete Tiny ImageNet, or `config` is unknown.

    >>> prepare("tiny-imagenet-200.zip", "data", config="quarter")
    Traceback (most recent call last):
    ValueError: config must be one of full, half, got 'quarter'
    """
    if config not in _IMAGES_PER_CLASS:
        raise ValueError(f"config must be one of {', '.join(_IMAGES_PER_CLASS)}, got {config!r}")
    builder = TinyImagenet(
        source=source, data_dir=os.fspath(data_dir), config=config, file_format="array_record"
    )
    builder.download_and_prepare()
    return Path(builder.data_dir)


def main(arguments: list[str] | None = None) -> None:
    """Run `prepare` from the command line."""
    parser = argparse.ArgumentParser(description="Prepare Tiny ImageNet as a TFDS set.")
    parser.add_argument("source", type=Path, help="tiny-imagenet-200.zip or its unpacked folder")
    parser.add_argument("--data-dir", type=Path, required=True, help="TFDS data directory")
    parser.add_argument("--config", choices=_IMAGES_PER_CLASS, default="full")
    options = parser.parse_args(arguments)
    try:
        print(prepare(options.source, options.data_dir, options.config))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
