"""Prepared TFDS folders: find one, and decode a split of it without TensorFlow."""

import json
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from jaxlimit._core.memory import host_memory
from jaxlimit.datasets._cache import cached_array
from jaxlimit.datasets._images import check_size

_CHUNK = 256  # records a thread reads at a time


def find_folder(data_dir: Path, name: str, config: str | None) -> Path | None:
    """Return the newest prepared version of a set under `data_dir`, or None.

    Without `config` it is TFDS's recorded default if that is there, else the only one there is.
    TFDS's own search goes by the code's default config, even where only another is prepared.
    """
    configs = find_configs(data_dir, name)
    if config is None:
        config = _recorded_default(data_dir / name)
        if config not in configs:
            if len(configs) > 1:
                listed = ", ".join(f"{name}/{other}" for other in sorted(configs))
                raise ValueError(f"name must say which config of {name} is meant: {listed}")
            config = next(iter(configs), "")
    return configs.get(config)


def find_configs(data_dir: Path, name: str) -> dict[str, Path]:
    """Return the newest prepared folder of each config of a set; '' stands for no config."""
    configs = {}
    notes = [*data_dir.glob(f"{name}/*/features.json"), *data_dir.glob(f"{name}/*/*/features.json")]
    # TFDS prepares under a name like incomplete.XYZ_1.0.0; the pattern passes over it.
    folders = [note.parent for note in notes if re.fullmatch(r"\d+\.\d+\.\d+", note.parent.name)]
    for folder in sorted(folders, key=lambda folder: [int(n) for n in folder.name.split(".")]):
        config = folder.parent.relative_to(data_dir / name).as_posix()
        configs["" if config == "." else config] = folder
    return configs


def _recorded_default(folder: Path) -> str | None:
    note = folder / ".config" / "metadata.json"
    try:
        return json.loads(note.read_text()).get("default_config_name") if note.exists() else None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{note} is damaged: {error}") from error


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return images, labels and the number of classes of one split of a prepared folder."""
    info = _open_folder(folder).info
    if split not in info.splits:
        known = ", ".join(map(repr, info.splits))
        raise ValueError(f"split must be one of {known}, got {split!r}")
    image_key, label_key = _supervised_keys(info)
    shards = [Path(path) for path in info.splits[split].filepaths]
    for shard in shards:
        if shard.parent != folder:
            raise ValueError(f"dataset_info.json in {folder} names {shard}, which lies elsewhere")
        if not shard.exists():
            raise FileNotFoundError(f"record file {shard} is missing; prepare {info.name} again")
    files = [folder / "dataset_info.json", folder / "features.json", *shards]
    where = zlib.crc32(str(folder.resolve()).encode())  # two copies of a set do not share a cache
    name = f"{info.full_name.replace('/', '-')}-{split}-{where:08x}"
    table = cached_array(name, files, lambda: _decode_split(folder, split, image_key, label_key))
    labels = np.array(table["label"], np.int32)  # few, so worth having in memory and contiguous
    return np.asarray(table["image"]), labels, info.features[label_key].num_classes


def _open_folder(folder: Path) -> Any:
    try:
        builder: Any = tfds.builder_from_directory(folder)
    except Exception as error:  # each of its JSON readers fails in a way of its own
        raise ValueError(
            f"dataset_info.json or features.json in {folder} is damaged: {error}"
        ) from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{folder} holds {builder.info.file_format.value} files, which only TensorFlow reads. "
            f"Prepare it again in another data directory. {how_to_get(builder.info.name)}"
        )
    return builder


def how_to_get(name: str) -> str:
    """Return the commands that prepare a set of TFDS as ArrayRecord files."""
    return (
        "TFDS needs TensorFlow once, to prepare, so use a virtual environment apart:\n"
        "  pip install tensorflow tensorflow-datasets array_record importlib_resources\n"
        '  python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='DIR', file_format='array_record')"
        '.download_and_prepare()"'
    )


def _supervised_keys(info: Any) -> tuple[str, str]:
    """Return the names of the image and of the label, or raise where a set has other contents."""
    image_key, label_key = (info.supervised_keys or ("image", "label"))[:2]
    features = cast(Any, dict(getattr(info.features, "items", dict)()))
    image, label = features.get(image_key), features.get(label_key)
    kinds = cast(Any, tfds.features)  # imported lazily, which type checkers cannot follow
    if not (
        isinstance(image, kinds.Image)
        and isinstance(label, kinds.ClassLabel)
        and label.num_classes
        and image.np_dtype == np.uint8
        and image.shape[-1] in (1, 3)
        and None not in image.shape
    ):
        raise ValueError(
            "name must be a set of 8-bit grey or RGB images of one size with one class each; "
            f"{info.full_name} holds {info.features}"
        )
    return image_key, label_key


def _decode_split(folder: Path, split: str, image_key: str, label_key: str) -> np.ndarray:
    """Decode every record in threads (OpenCV gives up the interpreter lock) into one table."""
    builder = _open_folder(folder)
    features, num_examples = builder.info.features, builder.info.splits[split].num_examples
    shape, num_classes = features[image_key].shape, features[label_key].num_classes
    source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
    jobs = _jobs(builder.info.splits[split])  # counts the records before it is believed
    table = _empty_table(folder, num_examples, shape)
    images, labels = table["image"], table["label"]

    def fill(shard: str, start: int, stop: int) -> None:
        try:
            for index, record in enumerate(source.__getitems__(range(start, stop)), start):
                images[index] = _decode_image(record[image_key], shape)
                labels[index] = record[label_key]
        except Exception as error:
            raise ValueError(f"record file {shard} is damaged: {error}") from error

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: fill(*job), jobs))
    strays = np.setdiff1d(labels, np.arange(num_classes))
    if strays.size:
        raise ValueError(
            f"split {split!r} of {folder} is unlabelled or damaged: it has labels {strays[:5]}, "
            f"and classes 0..{num_classes - 1}"
        )
    return table


def _empty_table(folder: Path, num_examples: int, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype([("image", np.uint8, shape), ("label", np.int32)])
    num_bytes, limit = num_examples * dtype.itemsize, host_memory()
    if limit is not None and num_bytes > limit:
        raise MemoryError(
            f"{folder} announces {num_examples:,} images of shape {shape}, which take "
            f"{num_bytes / 2**30:.3g} GiB decoded; this machine has {limit / 2**30:.3g} GiB"
        )
    return np.empty(num_examples, dtype)


def _jobs(split: Any) -> list[tuple[str, int, int]]:
    """Cut a split into (record file, start, stop) of records numbered through the split."""
    jobs, offset = [], 0
    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
        try:
            found = len(ArrayRecordDataSource([str(path)]))
        except Exception as error:
            raise ValueError(f"record file {path} is damaged: {error}") from error
        if found != length:
            raise ValueError(f"record file {path} is damaged: {found} of {length} records")
        for start in range(0, length, _CHUNK):
            jobs.append((str(path), offset + start, offset + min(start + _CHUNK, length)))
        offset += length
    return jobs


def _decode_image(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    check_size(encoded, *shape[:2])
    color = cv2.IMREAD_GRAYSCALE if shape[-1] == 1 else cv2.IMREAD_COLOR
    # Without the flag OpenCV would turn photographs by their EXIF note; TFDS does not.
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), color | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError(f"{len(encoded)} bytes that are no image")
    image = image[..., None] if shape[-1] == 1 else image[..., ::-1]  # OpenCV's order is BGR
    if image.shape != shape:
        raise ValueError(f"an image of shape {image.shape} where {shape} was announced")
    return image
