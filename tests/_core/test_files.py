"""Files: whole or not at all, one writer beside another, damage and other runs told by name."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from jaxlimit._core import files


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_there_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def write_half():
        with files.replacing(path) as file:
            file.write(b"half of the new")
            file.flush()
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}
    files.write_text(path, "ρ")
    assert path.read_bytes() == b"\xcf\x81"


def test_new_files_have_the_rights_that_open_gives(tmp_path):
    (tmp_path / "plain").touch()
    files.write_text(tmp_path / "own", "")
    assert (tmp_path / "own").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0")
    (tmp_path / ".a.json.0.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError, match=r"could not write .*a\.json, nothing was left"):
        files.write_json(tmp_path / "a.json", {"x": 1})
    assert victim.read_text() == "precious"
    assert names(tmp_path) == {"victim", ".a.json.0.tmp"}


def test_a_link_at_the_name_itself_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.json").symlink_to(victim)
    files.write_json(tmp_path / "a.json", {"x": 1})
    assert victim.read_text() == "precious"
    assert files.read_json(tmp_path / "a.json") == {"x": 1}


def test_readers_beside_two_writers_see_whole_files_alone(tmp_path):
    path, stop, failures = tmp_path / "a.json", threading.Event(), []
    contents = [{"writer": i, "values": [i] * 5000} for i in range(2)]
    files.write_json(path, contents[0])

    def write(content):
        try:
            while not stop.is_set():
                files.write_json(path, content)
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    seen = [files.read_json(path) for _ in range(200)]
    stop.set()
    for writer in writers:
        writer.join()
    assert not failures
    assert all(content in contents for content in seen)
    assert names(tmp_path) == {"a.json"}


def test_a_full_disk_keeps_the_old_and_names_the_file(tmp_path):
    """In a process of its own, where no file may pass 64 KiB: it ends in one named error."""
    code = """
import resource, signal, sys
import numpy as np
from jaxlimit._core import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
for write in (
    lambda: files.write_json("result.json", {"values": [0.1] * 100_000}),
    lambda: files.save("spectrum.npz", 1, values=np.zeros(100_000)),
):
    try:
        write()
    except OSError as error:
        print(error.errno, error)
"""
    files.write_json(tmp_path / "result.json", {"old": 1})
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{errno.EFBIG} ")
    assert "could not write result.json, what was there before is still whole" in first
    assert "could not write spectrum.npz, nothing was left" in second
    assert done.stderr == ""
    assert files.read_json(tmp_path / "result.json") == {"old": 1}
    assert names(tmp_path) == {"result.json"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"could not write .*none/a\.json"):
        files.write_json(tmp_path / "none" / "a.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"could not write .*folder"):
        files.write_text(tmp_path / "folder", "")
    assert names(tmp_path) == {"folder"}


def test_json_comes_back_and_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "a.json"
    content = {"ρ": 0.1 + 0.2, "list": [1, None, True, "x"], "nested": {"b": 1e-300, "a": -0.0}}
    files.write_json(path, content)
    assert files.read_json(path) == content
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 4, 64):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            # Where a blank became another blank the content is the same.
            with suppress(ValueError):
                assert files.read_json(path) == content
    for cut in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.json"):
            files.read_json(path)


def test_json_that_was_not_written_here_is_refused(tmp_path):
    path = tmp_path / "a.json"
    for text in ("[1]", "3", "{}", '{"ratio": 0.1}', '{"ratio": 0.1, "digest": null}', "[" * 10**5):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.json"):
            files.read_json(path)
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        files.read_json(tmp_path / "b.json")


def test_json_takes_no_content_that_it_could_not_give_back(tmp_path):
    with pytest.raises(ValueError, match="digest"):
        files.write_json(tmp_path / "a.json", {"digest": "x"})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not names(tmp_path)


def test_the_layout_of_a_file_does_not_enter_its_digest(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"numbers": {2: "b", 10: "a"}})  # as names, in another order
    assert files.read_json(path) == {"numbers": {"2": "b", "10": "a"}}
    files.write_json(path, {"a": (1, 2), "b": {"d": 1, "c": 2}})
    content = json.loads(path.read_text())
    content["b"] = {"c": 2, "d": 1}
    path.write_text(json.dumps(content, indent=4))
    assert files.read_json(path) == {"a": [1, 2], "b": {"c": 2, "d": 1}}


def test_arrays_know_what_made_them(tmp_path):
    path, made = tmp_path / "a.npz", {"images": 64, "rate": 0.1, "tuple": (1, 2)}
    files.save(path, 1, identity=made, x=np.arange(3))
    for identity in (None, made, dict(reversed(made.items()))):
        found = files.load(path, "a thing", 1, {"x"}, identity=identity)
        assert found.keys() == {"version", "x"}
    with pytest.raises(files.OtherRunError, match=r"a\.npz was made by another run: images: it has "
                       "64, asked for was 256"):  # fmt: skip
        files.load(path, "a thing", 1, {"x"}, identity=made | {"images": 256})
    with pytest.raises(files.OtherRunError, match=r"rate: it has 0\.1, asked for was None"):
        files.load(path, "a thing", 1, {"x"}, identity={"images": 64, "tuple": [1, 2]})
    files.save(path, 1, x=np.arange(3))
    with pytest.raises(files.OtherRunError, match="images: it has None"):
        files.load(path, "a thing", 1, {"x"}, identity=made)
    with pytest.raises(files.OtherRunError, match=r"a\.npz was made by another run"):
        files.load(path, "a thing", 1, {"x"}, identity={})  # none is not an empty one
    files.save(path, 1, x=np.arange(3), identity={})
    assert "x" in files.load(path, "a thing", 1, {"x"}, identity={})
    files.save(path, 1, x=np.arange(3), identity={"images": 64})
    with pytest.raises(files.OtherRunError, match="images: it has 64, asked for was None"):
        files.load(path, "a thing", 1, {"x"}, identity={})
    files.save(path, 1, x=np.arange(3), identity=None)
    assert files.load(path, "a thing", 1, {"x"}, identity=None)["x"].tolist() == [0, 1, 2]


def test_versions_and_kinds_are_told_apart(tmp_path):
    path = tmp_path / "a.npz"
    files.save(path, 2, x=np.arange(3), y=np.ones(1))
    assert files.load(path, "a thing", 2, {"z"}, {"x", "y"}).keys() == {"version", "x", "y"}
    with pytest.raises(ValueError, match=r"a\.npz must be a thing of format 1, got 2"):
        files.load(path, "a thing", 1, {"x"})
    with pytest.raises(ValueError, match=r"of format 2, got a file without z"):
        files.load(path, "a thing", 2, {"v", "w", "x"}, {"y", "z"})
    np.savez(path, x=np.arange(3))
    with pytest.raises(ValueError, match=r"of format 2, got none"):
        files.load(path, "a thing", 2, {"x"})


def encrypted(path):
    """Set the bit that marks the first entry as encrypted, in both of its headers."""
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def announce(path, length, data=b""):
    """Announce an array of so many bytes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({length},), }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x76\x00" + header + data)


def of_1e11(path):
    announce(path, 10**11)


def one_too_long(path):
    announce(path, 1001, bytes(1000))


def of_zeros(path):
    """A small archive of 16 MiB of zeros."""
    np.savez_compressed(path, x=np.zeros(2 << 20))


def of_another_kind(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x07\x00")


@pytest.mark.parametrize("damage", [encrypted, of_1e11, one_too_long, of_zeros, of_another_kind])
def test_damaged_archives_name_their_file_before_their_arrays_are_read(
    tmp_path, monkeypatch, damage
):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3))
    damage(path)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was believed"))
    with pytest.raises(ValueError, match=r"a\.npz must be a thing of format 1, got a file that"):
        files.load(path, "a thing", 1, {"x"})


def test_all_is_on_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    path, done = tmp_path / "a.txt", []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        found = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)
        sync(descriptor)

    def record_replace(source, target):
        done.append("replaced")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", record_sync)
    monkeypatch.setattr(files.os, "replace", record_replace)
    files.write_text(path, "twelve bytes")
    assert done == [12, "replaced", "folder"]
