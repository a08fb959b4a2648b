"""The loaders against the pixels that were written, PIL's decoder and scikit-learn's arrays."""

import hashlib
import io
import json
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow_datasets.image_classification import cifar

from jaxlimit import datasets
from jaxlimit.datasets import _records, tiny_imagenet

NUM_CIFAR100 = {"train": 600, "test": 30}

# SHA-256 of the images in order, PNG decoded by PIL and ink stretched by integers.
PINNED = {
    ("digits", "train"): "1a5fd3b5c524e826767083c882fe4f8c91850d3568a78caadaa66eb3fe78f5b6",
    ("digits", "test"): "a422c8110b35908d8bc868469498d8bc67c5d5f4357631b3ded0ee283ca6a1e9",
    ("cifar10", "train"): "88c9329a98bc81f5027a3c0afbdad9b81009cabd4825085c654d8045038b3be2",
    ("cifar10", "test"): "f0333f9cabc71184abd492a7b73fb73c7e66e192841c11b66d067a1338dad987",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXLIMIT_CACHE_DIR", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return folder


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("real-cache")


def encode(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """CIFAR-100 of random pixels in its distributed form, prepared by TFDS's own builder.

    Only the download and the two steps that would need TensorFlow (reading a file, PNG) are ours.
    """
    folder = tmp_path_factory.mktemp("cifar100")
    raw = folder / "cifar-100-binary"
    raw.mkdir()
    rng = np.random.default_rng(0)
    rows = {}
    for split, count in NUM_CIFAR100.items():
        coarse, fine = rng.integers(0, 20, (count, 1)), rng.integers(0, 100, (count, 1))
        pixels = rng.integers(0, 256, (count, 3 * 32 * 32))
        rows[split] = np.concatenate([coarse, fine, pixels], 1).astype(np.uint8)
        rows[split].tofile(raw / f"{split}.bin")
    (raw / "coarse_label_names.txt").write_text("".join(f"coarse {i}\n" for i in range(20)))
    (raw / "fine_label_names.txt").write_text("".join(f"fine {i}\n" for i in range(100)))

    def load_data(path, labels_number):
        for row in np.fromfile(path, np.uint8).reshape(-1, labels_number + 3 * 32 * 32):
            pixels = row[labels_number:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield row[:labels_number], encode(pixels, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "_load_data", load_data)
        manager = tfds.download.DownloadManager
        patch.setattr(manager, "download_and_extract", lambda self, url: str(folder))
        builder = cifar.Cifar100(data_dir=str(folder / "data"), file_format="array_record")
        builder.download_and_prepare()
    return folder / "data", rows


@pytest.fixture
def own_cifar100(cifar100, tmp_path):
    """A copy that a test may damage: its data directory and its prepared folder."""
    data = tmp_path / "data"
    shutil.copytree(cifar100[0], data)
    return data, data / "cifar100" / "3.0.2"


def digest(images):
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


def test_digits_are_those_of_scikit_learn_in_order():
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    reference = load_digits()
    images = np.concatenate([train.images, test.images])
    assert len(train.images) == len(train.labels) == 1437
    assert len(test.images) == len(test.labels) == 360
    assert images.dtype == np.uint8
    assert images.shape[1:] == (8, 8, 1)
    assert images.max() == 255
    np.testing.assert_array_equal(np.rint(images[..., 0] * (16 / 255)), reference.images)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), reference.target)
    assert train.labels.dtype == np.int32
    assert digest(train.images) == PINNED["digits", "train"]
    assert digest(test.images) == PINNED["digits", "test"]
    assert set(test.labels) == set(range(10)) == set(range(train.num_classes))


def test_cifar100_gives_back_what_was_written(cifar100):
    data, rows = cifar100
    for split, count in NUM_CIFAR100.items():
        images, labels, num_classes = datasets.load("cifar100", split, data)
        assert (images.shape, images.dtype) == ((count, 32, 32, 3), np.uint8)
        assert (labels.shape, labels.dtype, num_classes) == ((count,), np.int32, 100)
        flat = images.transpose(0, 3, 1, 2).reshape(count, -1)
        found = np.concatenate([labels[:, None], flat], 1)
        fine = rows[split][:, 1:]
        np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(fine, axis=0))
        np.testing.assert_array_equal(jnp.asarray(images), images)


def test_cifar10_whole(data_dir, real_cache, monkeypatch):
    monkeypatch.setenv("JAXLIMIT_CACHE_DIR", str(real_cache))
    for split, count in (("train", 50_000), ("test", 10_000)):
        images, labels, num_classes = datasets.load("cifar10", split, data_dir)
        assert images.shape == (count, 32, 32, 3)
        assert digest(images) == PINNED["cifar10", split]
        np.testing.assert_array_equal(np.bincount(labels), np.full(num_classes, count // 10))
    assert_pil_agrees("cifar10", "test", data_dir, images, labels)


def test_tiny_imagenet_half(data_dir, real_cache, monkeypatch):
    monkeypatch.setenv("JAXLIMIT_CACHE_DIR", str(real_cache))
    images, labels, num_classes = datasets.load("tiny_imagenet/half", "validation", data_dir)
    assert images.shape == (10_000, 64, 64, 3)
    np.testing.assert_array_equal(np.bincount(labels), np.full(num_classes, 50))
    assert num_classes == 200
    assert_pil_agrees("tiny_imagenet/half", "validation", data_dir, images, labels)
    bare = datasets.load("tiny_imagenet", "validation", data_dir)
    np.testing.assert_array_equal(bare.images[::100], images[::100])


@pytest.mark.slow
def test_tiny_imagenet_half_has_half_of_every_class(data_dir, real_cache, monkeypatch):
    monkeypatch.setenv("JAXLIMIT_CACHE_DIR", str(real_cache))
    images, labels, num_classes = datasets.load("tiny_imagenet/half", "train", data_dir)
    assert images.shape == (50_000, 64, 64, 3)
    np.testing.assert_array_equal(np.bincount(labels), np.full(num_classes, 250))


def assert_pil_agrees(name, split, data_dir, images, labels):
    decoders = {"image": tfds.decode.SkipDecoding()}
    folder = _records.find_folder(Path(data_dir), *[*name.split("/"), None][:2])
    source = tfds.builder_from_directory(folder).as_data_source(split, decoders=decoders)
    for index in range(0, len(source), 10):
        picture = Image.open(io.BytesIO(source[index]["image"]))
        # Two JPEG decoders may round the inverse cosine transform apart; swapped channels or
        # rows are off by far more.
        difference = np.asarray(picture.convert("RGB"), int) - images[index]
        assert abs(difference).max() <= 2
        assert source[index]["label"] == labels[index]


def test_tensorflow_is_not_imported(cifar100, cache):
    code = (
        "import sys; from jaxlimit import datasets, datasets as d\n"
        "assert 'tensorflow_datasets' not in sys.modules, 'imported before it is needed'\n"
        f"assert len(d.load('cifar100', 'test', {str(cifar100[0])!r}).images) == 30\n"
        "assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_second_load_maps_the_checked_cache(cifar100, cache, monkeypatch):
    first = datasets.load("cifar100", "test", cifar100[0])
    monkeypatch.setattr(_records, "_decode_split", None)
    second = datasets.load("cifar100", "test", cifar100[0])
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert not second.images.flags.writeable
    assert not second.images.flags.owndata
    [kept] = cache.iterdir()
    content = kept.read_bytes()
    size = len(content) - 8 - int.from_bytes(content[-8:], "little")
    assert size % 64 == 30 * (32 * 32 * 3 + 4) % 64  # NumPy's header fills up 64s
    note = json.loads(content[size:-8])
    assert note["sha256"] == hashlib.sha256(content[:size]).hexdigest()


def flip_byte(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_an_earlier_version(path):
    """An array alone, its note in a file beside it."""
    np.save(path, np.load(path))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: flip_byte(path, 5000),
        lambda path: flip_byte(path, -50),
        lambda path: flip_byte(path, -2),
        truncate,
        empty,
        of_an_earlier_version,
    ],
)
def test_damaged_cache_is_built_again_with_a_warning(cifar100, cache, harm):
    first = datasets.load("cifar100", "test", cifar100[0])
    images = first.images.copy()
    [kept] = cache.glob("*.npy")
    harm(kept)
    with pytest.warns(UserWarning, match=kept.name):
        again = datasets.load("cifar100", "test", cifar100[0])
    np.testing.assert_array_equal(again.images, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.load("cifar100", "test", cifar100[0])


def test_unwritable_cache_costs_a_warning_not_the_data(cifar100, cache):
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be kept"):
        found = datasets.load("cifar100", "test", cifar100[0])
    assert found.images.shape == (30, 32, 32, 3)
    assert found.images.std() > 50


def record_file(folder):
    return folder / "cifar100-train.array_record-00000-of-00001"


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        lambda path: path.write_bytes(b""),
        lambda path: flip_byte(path, path.stat().st_size // 4),
        lambda path: shutil.copy(str(path).replace("train", "test"), path),
    ],
    ids=["half-written", "empty", "flipped byte", "another number of records"],
)
def test_damaged_record_file_is_named(own_cifar100, cache, harm):
    data, folder = own_cifar100
    harm(record_file(folder))
    with pytest.raises(ValueError, match=rf"{record_file(folder)} is damaged"):
        datasets.load("cifar100", "train", data)
    assert not cache.exists()


def test_missing_record_file_is_named(own_cifar100):
    data, folder = own_cifar100
    record_file(folder).unlink()
    with pytest.raises(FileNotFoundError, match=str(record_file(folder))):
        datasets.load("cifar100", "train", data)


def test_damaged_metadata_is_named(own_cifar100):
    data, folder = own_cifar100
    truncate(folder / "features.json")
    with pytest.raises(ValueError, match=rf"features.json in {folder} is damaged"):
        datasets.load("cifar100", "train", data)


def test_damaged_default_config_is_named(own_cifar100):
    data, folder = own_cifar100
    note = folder.parent / ".config" / "metadata.json"
    note.parent.mkdir(exist_ok=True)
    for left in ('{"default_conf', "[]"):
        note.write_text(left)
        with pytest.raises(ValueError, match=f"{note} is damaged"):
            datasets.load("cifar100", "train", data)


def test_other_file_format_says_how_to_prepare(own_cifar100):
    data, folder = own_cifar100
    note = folder / "dataset_info.json"
    note.write_text(note.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"(?s)holds tfrecord files.*file_format='array_record'"):
        datasets.load("cifar100", "train", data)


def test_directories_are_looked_in_by_turns(own_cifar100, tmp_path, monkeypatch):
    data, _ = own_cifar100
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load("cifar100", "train", tmp_path / "nowhere")
    says = f"data_dir must be a folder that exists, got {tmp_path / 'nowhere'}"
    assert str(caught.value) == says
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load("cifar100", "train", here)
    for part in (here, "TFDS_DATA_DIR", "~/tensorflow_datasets", "tfds.builder("):
        assert str(part) in str(caught.value)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data))
    with pytest.raises(FileNotFoundError, match="data_dir must be a folder that exists"):
        datasets.load("cifar100", "test", tmp_path / "nowhere")
    assert len(datasets.load("cifar100", "test", here).images) == 30
    shutil.move(data, tmp_path / "home" / "tensorflow_datasets")
    assert len(datasets.load("cifar100", "test").images) == 30


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_zeros(height, width):
    """A PNG that is small on disk, whatever its size."""
    rows, pack = bytes(1 + width), zlib.compressobj(9)
    data = b"".join(pack.compress(rows) for _ in range(height)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(64, 65), (4000, 4000), (20_000, 20_000)])
def test_an_image_of_another_size_is_refused_before_it_is_decoded(monkeypatch, size):
    encoded = png_of_zeros(*size) if size[0] < 10_000 else png_of_zeros(1, 1)
    if size[0] >= 10_000:  # announced in the header alone
        encoded = encoded[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    monkeypatch.setattr(_records.cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=r"where \(64, 64\) was announced|are no image"):
        _records._decode_image(encoded, (64, 64, 1))


def test_an_image_of_the_announced_size_is_decoded():
    encoded = png_of_zeros(64, 32)
    np.testing.assert_array_equal(_records._decode_image(encoded, (64, 32, 1)), 0)
    with pytest.raises(ValueError, match="3 bytes that are no image"):
        _records._decode_image(b"abc", (64, 32, 1))


def test_a_table_larger_than_the_machine_is_refused_by_name(own_cifar100, monkeypatch):
    data, folder = own_cifar100
    monkeypatch.setattr(_records, "host_memory", lambda: 30 * 32 * 32 * 3)
    says = rf"{folder} announces 30 images of shape \(32, 32, 3\), which take"
    with pytest.raises(MemoryError, match=says):
        datasets.load("cifar100", "test", data)


def test_numbers_of_records_are_counted_before_they_are_believed(own_cifar100):
    data, folder = own_cifar100
    note = folder / "dataset_info.json"
    note.write_text(note.read_text().replace('"600"', '"100000000000"'))
    with pytest.raises(ValueError, match=r"is damaged: 600 of 100000000000 records"):
        datasets.load("cifar100", "train", data)


def test_record_files_elsewhere_are_not_read(own_cifar100):
    data, folder = own_cifar100
    note = folder / "dataset_info.json"
    content = json.loads(note.read_text())
    for split in content["splits"]:
        split["filepathTemplate"] = "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    note.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"dataset_info\.json in .* names .*lies elsewhere"):
        datasets.load("cifar100", "train", data)


def test_newest_whole_version_is_taken(own_cifar100):
    data, folder = own_cifar100
    for other in ("3.0.10", "2.9.9", "incomplete.AB_4.0.0"):
        shutil.copytree(folder, folder.parent / other)
    assert _records.find_folder(data, "cifar100", None).name == "3.0.10"


@pytest.mark.parametrize(
    ("name", "split", "error", "message"),
    [
        ("cifar1000", "train", ValueError, "did you mean 'cifar100'"),
        ("tiny_imagnet", "train", ValueError, "did you mean 'tiny_imagenet'"),
        ("qqqqqq", "train", ValueError, "There are digits, cifar10, cifar100, tiny_imagenet"),
        ("", "train", ValueError, "nothing comes near it.* 'name' or 'name/config'"),
        ("../cifar100", "train", ValueError, "did you mean 'cifar100'"),
        ("/cifar100", "train", ValueError, "did you mean 'cifar100'"),
        ("cifar-10", "train", ValueError, "did you mean 'cifar10' or"),
        ("CIFAR10", "train", ValueError, "did you mean 'cifar10' or"),
        ("MNIST", "train", ValueError, "did you mean 'mnist' or"),
        ("mnist ", "train", ValueError, "did you mean 'mnist' or"),
        ("mnist/a b", "train", ValueError, "did you mean 'mnist' or"),
        ("tiny-imagenet", "train", ValueError, "did you mean 'tiny_imagenet' or"),
        ("tiny_imagenet/hlaf", "train", ValueError, "did you mean 'tiny_imagenet/half' or"),
        ("digits/x", "train", ValueError, r"did you mean 'digits'\?"),
        (10, "train", TypeError, "name must be a str, got 10"),
        ("cifar100", "val", ValueError, "split must be one of 'train', 'test', got 'val'"),
        ("digits", "val", ValueError, "split must be one of 'train', 'test', got 'val'"),
        ("cifar100/half", "train", ValueError, "did you mean 'cifar100' or"),
        ("emnist/letters", "train", FileNotFoundError, "emnist/letters was not found"),
        ("tiny_imagenet", "train", FileNotFoundError, r"python -m jaxlimit\.datasets\.tiny"),
        ("fashion_mnist", "train", FileNotFoundError, r"tfds\.builder\('fashion_mnist'"),
    ],
)
def test_bad_names_are_answered(cifar100, name, split, error, message):
    with pytest.raises(error, match=message):
        datasets.load(name, split, cifar100[0])


class Grey(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Six grey images, of one size and labelled, unless told otherwise."""

    name = "grey"
    VERSION = tfds.core.Version("1.0.0")
    shape, labels = (8, 9, 1), range(6)

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=self.shape),
            "digit": tfds.features.ClassLabel(num_classes=6),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("picture", "digit"),
        )

    def _split_generators(self, dl_manager):
        return {"whole": self._generate_examples()}

    def _generate_examples(self):
        for index, label in enumerate(self.labels):
            pixels = np.full((8, 9), 40 * index, np.uint8)
            yield index, {"picture": encode(pixels, "PNG"), "digit": label}


def prepare_grey(folder, **changes):
    builder = type("Grey", (Grey,), changes, skip_registration=True)
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


def test_changed_record_files_are_noticed(tmp_path):
    prepare_grey(tmp_path)
    before = datasets.load("grey", "whole", tmp_path)
    shutil.rmtree(tmp_path / "grey")
    prepare_grey(tmp_path, labels=range(5, -1, -1))
    after = datasets.load("grey", "whole", tmp_path)
    np.testing.assert_array_equal(after.images, before.images)
    np.testing.assert_array_equal(after.labels, 5 - before.labels)


def test_any_other_set_loads_by_its_own_keys_and_splits(tmp_path):
    prepare_grey(tmp_path)
    images, labels, num_classes = datasets.load("grey", "whole", tmp_path)
    assert (images.shape, num_classes) == ((6, 8, 9, 1), 6)
    np.testing.assert_array_equal(
        images, np.broadcast_to(40 * labels[:, None, None, None], images.shape)
    )
    with pytest.raises(ValueError, match="did you mean 'grey'"):
        datasets.load("grye", "whole", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (None, None, 1)}, "one size"),
        ({"shape": (7, 9, 1)}, r"an image of \(8, 9\) pixels where \(7, 9\) was announced"),
        ({"labels": [0, 1, -1]}, r"unlabelled or damaged: it has labels \[-1\]"),
    ],
)
def test_sets_of_another_kind_are_refused(tmp_path, changes, message):
    prepare_grey(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        datasets.load("grey", "whole", tmp_path)


# In place of 500, 250 and 50 images a class.
NUM_FULL, NUM_HALF, NUM_VALIDATION = 3, 2, 1


@pytest.fixture
def few_images(monkeypatch):
    counts = {"full": NUM_FULL, "half": NUM_HALF}
    assert tiny_imagenet._IMAGES_PER_CLASS == {"full": 500, "half": 250}
    assert tiny_imagenet._VALIDATION_IMAGES_PER_CLASS == 50
    monkeypatch.setattr(tiny_imagenet, "_IMAGES_PER_CLASS", counts)
    monkeypatch.setattr(tiny_imagenet, "_VALIDATION_IMAGES_PER_CLASS", NUM_VALIDATION)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A folder in the distributed form: 200 classes, a few random JPEGs each, one in four grey."""
    top = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    rng = np.random.default_rng(1)
    classes = [f"n{number:08d}" for number in rng.permutation(np.arange(1000, 1200))]

    def write(path, index):
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        path.write_bytes(encode(coarse[..., 0] if index % 4 == 0 else coarse, "JPEG"))

    annotations = []
    for order, label in enumerate(classes):
        names = [f"{label}_{i}.JPEG" for i in range(8, 8 + NUM_FULL)]
        for index, name in enumerate(names):
            write(top / "train" / label / "images" / name, index)
        boxes = "".join(f"{name}\t0\t0\t63\t63\n" for name in names)
        (top / "train" / label / f"{label}_boxes.txt").write_text(boxes)
        write(top / "val" / "images" / f"val_{order}.JPEG", order)
        annotations.append(f"val_{order}.JPEG\t{label}\t0\t0\t63\t63\n")
    (top / "val" / "val_annotations.txt").write_text("".join(annotations))
    (top / "wnids.txt").write_text("\n".join(classes) + "\n")
    return top, classes


@pytest.fixture
def own_tiny_folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder[0], tmp_path / "tiny-imagenet-200"))


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder.parent))
    return path


def expected_tiny(tiny_folder, per_class):
    """The multiset of (class, pixels) of the training split, decoded by PIL."""
    top, classes = tiny_folder
    rows = []
    for label, wnid in enumerate(sorted(classes)):
        files = (top / "train" / wnid / "images").iterdir()
        for file in sorted(files, key=lambda file: int(file.stem.split("_")[1]))[:per_class]:
            rows.append([label, *np.asarray(Image.open(file).convert("RGB"))[::16, ::16].ravel()])
    return np.array(rows)


def test_tiny_imagenet_zip_and_folder_prepare_alike(tiny_folder, few_images, tmp_path, capsys):
    top, classes = tiny_folder
    archive = zipped(top, tmp_path / "tiny-imagenet-200.zip")
    folder = tiny_imagenet.prepare(top, tmp_path / "a", "half")
    tiny_imagenet.main([str(archive), "--data-dir", str(tmp_path / "b"), "--config", "half"])
    assert "tiny_imagenet/half/1.0.0" in capsys.readouterr().out
    first = datasets.load("tiny_imagenet/half", "train", tmp_path / "a")
    for found in (datasets.load("tiny_imagenet", "train", tmp_path / "b"), first):
        assert (found.images.shape, found.num_classes) == ((NUM_HALF * 200, 64, 64, 3), 200)
        rows = np.concatenate(
            [found.labels[:, None], found.images[:, ::16, ::16].reshape(len(found.labels), -1)], 1
        )
        rows, expected = (
            table[np.lexsort(table.T[::-1])]
            for table in (rows, expected_tiny(tiny_folder, NUM_HALF))
        )
        np.testing.assert_array_equal(rows[:, 0], expected[:, 0])
        assert abs(rows - expected).max() <= 2
    assert (folder / "label.labels.txt").read_text().split() == sorted(classes)


def test_tiny_imagenet_full_and_validation(tiny_folder, few_images, tmp_path):
    top, classes = tiny_folder
    tiny_imagenet.prepare(top.parent, tmp_path, "full")
    assert len(datasets.load("tiny_imagenet/full", "train", tmp_path).images) == NUM_FULL * 200
    images, labels, _ = datasets.load("tiny_imagenet", "validation", tmp_path)
    np.testing.assert_array_equal(np.sort(labels), np.arange(200))
    for order in (0, 1):
        index = int(np.flatnonzero(labels == sorted(classes).index(classes[order]))[0])
        picture = Image.open(top / "val" / "images" / f"val_{order}.JPEG")
        assert picture.mode == ("L", "RGB")[order]
        assert abs(np.asarray(picture.convert("RGB"), int) - images[index]).max() <= 2
    tiny_imagenet.prepare(top, tmp_path, "half")
    bare = datasets.load("tiny_imagenet", "train", tmp_path)
    assert len(bare.images) == NUM_FULL * 200, "with both prepared, the bare name is full"


@pytest.mark.parametrize("config", ["full", "half"])
def test_half_copied_lists_of_tiny_imagenet_are_refused(
    own_tiny_folder, tiny_folder, few_images, tmp_path, config
):
    wnid = tiny_folder[1][5]
    boxes = own_tiny_folder / "train" / wnid / f"{wnid}_boxes.txt"
    rows = boxes.read_text().splitlines(keepends=True)
    annotations = own_tiny_folder / "val" / "val_annotations.txt"
    for left in ([], rows[:2], [rows[0], *rows[:2]], [*rows, rows[0].replace("_8", "_7")]):
        boxes.write_text("".join(left))
        says = rf"{boxes.name} names {len(set(left))} images of class {wnid}, expected {NUM_FULL}"
        with pytest.raises(ValueError, match=says):
            tiny_imagenet.prepare(own_tiny_folder, tmp_path / "data", config)
    boxes.write_text("".join(rows))
    rows = annotations.read_text().splitlines(keepends=True)
    annotations.write_text("".join(rows[:7]))
    with pytest.raises(ValueError, match=rf"{annotations.name} names 0 images .* expected 1"):
        tiny_imagenet.prepare(own_tiny_folder, tmp_path / "data", config)
    annotations.write_text("".join(rows))
    tiny_imagenet.prepare(own_tiny_folder, tmp_path / "data", config)


def test_damaged_tiny_imagenet_is_refused(
    own_tiny_folder, tiny_folder, few_images, tmp_path, capsys
):
    wnid = tiny_folder[1][5]
    image = own_tiny_folder / "train" / wnid / "images" / f"{wnid}_8.JPEG"
    data = tmp_path / "data"
    whole = image.read_bytes()
    image.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=rf"{image.name} is not a whole 64x64 JPEG"):
        tiny_imagenet.prepare(own_tiny_folder, data)
    image.unlink()
    with pytest.raises(ValueError, match=rf"{image.name} in {own_tiny_folder} is missing"):
        tiny_imagenet.prepare(own_tiny_folder, data)
    archive = zipped(own_tiny_folder, tmp_path / "tiny.zip")
    truncate(archive)
    with pytest.raises(ValueError, match="zip file that is whole"):
        tiny_imagenet.prepare(archive, data)
    with pytest.raises(SystemExit):
        tiny_imagenet.main([str(archive), "--data-dir", str(data)])
    assert "zip file that is whole" in capsys.readouterr().err
    (own_tiny_folder / "wnids.txt").write_text(wnid)
    with pytest.raises(ValueError, match="expected 200"):
        tiny_imagenet.prepare(own_tiny_folder, data)
    with pytest.raises(ValueError, match="config must be one of full, half, got 'third'"):
        tiny_imagenet.prepare(own_tiny_folder, data, "third")
    with pytest.raises(FileNotFoundError, match="was not found"):
        datasets.load("tiny_imagenet", "train", data)


@pytest.mark.parametrize("name", ["../../x.JPEG", "/etc/passwd", "a/b.JPEG", ".JPEG", "x.png", ""])
def test_lists_of_tiny_imagenet_that_lead_elsewhere_are_refused(
    own_tiny_folder, tiny_folder, few_images, tmp_path, name
):
    wnid = tiny_folder[1][5]
    for list_, row in (
        (own_tiny_folder / "train" / wnid / f"{wnid}_boxes.txt", f"{name}\t0\t0\t63\t63"),
        (own_tiny_folder / "val" / "val_annotations.txt", f"{name}\t{wnid}\t0\t0\t63\t63"),
    ):
        whole = list_.read_text()
        list_.write_text("\n".join([row, *whole.splitlines()[1:]]) + "\n")
        with pytest.raises(ValueError, match=rf"{list_.name} must name .*JPEG, got '{name}'"):
            tiny_imagenet.prepare(own_tiny_folder, tmp_path / "data")
        list_.write_text(whole)


def test_classes_and_links_of_tiny_imagenet_that_lead_elsewhere_are_refused(
    own_tiny_folder, tiny_folder, few_images, tmp_path
):
    names, wnid = own_tiny_folder / "wnids.txt", tiny_folder[1][5]
    whole = names.read_text()
    names.write_text(whole.replace(wnid, "../../secrets"))
    with pytest.raises(ValueError, match=r"wnids\.txt must name n\\d\{8\}, got '\.\./"):
        tiny_imagenet.prepare(own_tiny_folder, tmp_path / "data")
    names.write_text(whole)
    image = own_tiny_folder / "train" / wnid / "images" / f"{wnid}_8.JPEG"
    image.rename(tmp_path / "secret.JPEG")
    image.symlink_to(tmp_path / "secret.JPEG")
    with pytest.raises(ValueError, match=rf"{image.name} .*lies outside of the folder, at "):
        tiny_imagenet.prepare(own_tiny_folder, tmp_path / "data")
    image.unlink()
    image.symlink_to(image.with_name(f"{wnid}_9.JPEG"))  # as tools that save space do
    link = tmp_path / "link"
    link.symlink_to(own_tiny_folder)
    tiny_imagenet.prepare(link, tmp_path / "data")


def test_an_archive_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    path = tmp_path / "tiny.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", bytes(64 << 20))
    with pytest.raises(ValueError, match=r"wnids\.txt in .* is damaged: it has over 4,194,304"):
        tiny_imagenet.prepare(path, tmp_path / "data")


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "batch_size must be at least 1, got 0"),
        (-1, ValueError, "batch_size must be at least 1, got -1"),
        (2.5, TypeError, "batch_size must be a static int, got 2.5"),
    ],
)
def test_batches_of_no_size_are_refused(size, error, message):
    with pytest.raises(error, match=message):
        datasets.to_batches(datasets.load("digits", "test"), size)
