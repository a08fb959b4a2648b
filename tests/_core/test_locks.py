"""One writer to a folder at a time, and none kept out by the dead."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlimit._core import locks

HOLDER = """
import sys, time
from jaxlimit._core import locks
with locks.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(locks.__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_told_who_holds_it_and_goes_on_when_it_is_gone(tmp_path, holder):
    says = rf"{tmp_path} is in use by process {holder.pid} on \S+, since \d{{4}}-\d\d-\d\d "
    for _ in range(2):  # to have been refused changes nothing
        with pytest.raises(locks.InUseError, match=says), locks.hold(tmp_path):
            pass
    holder.kill()
    holder.wait()
    assert (tmp_path / locks.HOLDER).exists()  # the dead had no time to tidy up
    with locks.hold(tmp_path):
        assert str(os.getpid()) in (tmp_path / locks.HOLDER).read_text()
    assert not (tmp_path / locks.HOLDER).exists()


def test_a_process_that_ends_well_lets_go(tmp_path, holder):
    assert holder.communicate("")[0] == ""
    assert holder.returncode == 0
    with locks.hold(tmp_path):
        pass


def test_the_same_process_is_told_that_it_is_itself(tmp_path):
    with locks.hold(tmp_path):
        with pytest.raises(locks.InUseError, match="another call in this process, since"):
            locks.hold(tmp_path).__enter__()
        assert (tmp_path / locks.HOLDER).exists()
    with pytest.raises(KeyError), locks.hold(tmp_path):
        raise KeyError
    with locks.hold(tmp_path):
        pass


def test_a_note_that_says_nothing_leaves_the_lock(tmp_path):
    with locks.hold(tmp_path):
        for text in ("", "[]", "{}", "nonsense"):
            (tmp_path / locks.HOLDER).write_text(text)
            with pytest.raises(locks.InUseError, match="in use by another process; wait"):
                locks.hold(tmp_path).__enter__()
        (tmp_path / locks.HOLDER).unlink()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (locks.LOCK, locks.HOLDER):
        (tmp_path / name).symlink_to(victim)
        try:
            with locks.hold(tmp_path):
                pass
        except OSError as error:
            assert re.search("could not be locked", str(error))  # noqa: PT017
        assert victim.read_text() == "precious"
        (tmp_path / name).unlink(missing_ok=True)


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.os, "access", lambda *_: False)
    with locks.hold(tmp_path), locks.hold(tmp_path):
        assert not list(tmp_path.iterdir())
