"""Whose folder it is: ours is locked and marked, what is not ours is never touched."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxlimit._core import checkpoints
from jaxlimit._core.checkpoints import Checkpoints, check_directory
from jaxlimit._core.locks import InUseError

TREE = {"x": jnp.arange(3.0)}


def open_in(folder, **identity):
    return Checkpoints(folder, 1, lambda: identity, unit="step")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_one_comes_back_and_the_newest_is_kept(tmp_path):
    with open_in(tmp_path, a=1) as kept:
        assert kept.restore(lambda _: TREE) is None
        kept.save(1, TREE, last=False)
        kept.save(2, {"x": TREE["x"] + 1}, last=False)
        kept.save(2, TREE, last=True)  # is there already
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["2"]
    with open_in(tmp_path, a=1) as kept:
        np.testing.assert_array_equal(kept.restore(lambda _: TREE)["x"], [1, 2, 3])
        assert kept.saved == 2
    with (
        open_in(tmp_path, a=2) as kept,
        pytest.raises(
            ValueError, match=r"differs in a: checkpoint 1, this run 2\. Give this run"
        ) as e,
    ):
        kept.restore(lambda _: TREE)
    assert "remove" not in str(e.value)


def test_a_save_waits_for_its_turn_or_the_end(tmp_path):
    with Checkpoints(tmp_path, 3, dict, unit="step") as kept:
        saved = []
        for count in range(1, 6):
            kept.save(count, TREE, last=count == 5)
            saved.append(kept.saved)
    assert saved == [0, 0, 3, 3, 5]


def test_the_second_run_is_told_and_the_first_goes_on(tmp_path):
    with open_in(tmp_path, a=1) as first:
        first.save(1, TREE, last=False)
        with pytest.raises(InUseError, match=r"in use by another call in this process"):
            open_in(tmp_path, a=1)
        first.save(2, TREE, last=False)
    with open_in(tmp_path, a=1) as second:
        assert second.restore(lambda _: TREE) is not None


def test_an_error_at_the_opening_lets_go_of_the_lock(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ocp, "CheckpointManager", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_in(tmp_path)
    open_in(tmp_path).close()


def test_closing_lets_go_of_orbax_and_of_the_lock(tmp_path, monkeypatch):
    close, closed = ocp.CheckpointManager.close, []
    monkeypatch.setattr(
        ocp.CheckpointManager, "close", lambda manager: (closed.append(manager), close(manager))
    )
    kept = open_in(tmp_path)
    assert not closed
    kept.close()
    assert len(closed) == 1
    open_in(tmp_path).close()


def save_with_orbax(folder):
    with ocp.CheckpointManager(folder) as manager:
        manager.save(7, args=ocp.args.StandardSave(TREE))


def save_bare(folder):
    folder.rmdir()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, TREE)


def half_saved(folder):
    (folder / "7.orbax-checkpoint-tmp").mkdir()
    (folder / "7.orbax-checkpoint-tmp" / "data").write_text("on its way")


@pytest.mark.parametrize("save", [save_with_orbax, save_bare, half_saved])
def test_checkpoints_of_others_are_refused_and_left_alone(tmp_path, save):
    folder = tmp_path / "theirs"
    folder.mkdir()
    save(folder)
    before = contents(folder)
    for enter in (check_directory, open_in):
        with pytest.raises(ValueError, match="holds checkpoints that jaxlimit did not write") as e:
            enter(folder)
        for word in ("damaged", "remove", "move it", "delete"):
            assert word not in str(e.value)
    assert contents(folder) == before


def test_what_a_killed_save_of_ours_left_is_no_one_elses(tmp_path):
    open_in(tmp_path).close()
    half_saved(tmp_path)
    with open_in(tmp_path) as kept:
        assert kept.restore(lambda _: TREE) is None
        kept.save(7, TREE, last=True)
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["7"]


def test_other_files_may_lie_beside_ours(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}")
    with open_in(tmp_path) as kept:
        kept.save(1, TREE, last=True)
    check_directory(tmp_path)
    (tmp_path / checkpoints.MARK).unlink()  # as in a folder of an earlier version
    with open_in(tmp_path) as kept:
        assert kept.restore(lambda _: TREE) is not None
    assert (tmp_path / "metrics.jsonl").read_text() == "{}"
    assert (tmp_path / checkpoints.MARK).exists()


def test_a_file_in_place_of_the_folder_is_noticed_at_once(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for enter in (check_directory, open_in):
        with pytest.raises(NotADirectoryError, match=rf"checkpoint_dir must be a folder, {path}"):
            enter(path)
    assert path.read_text() == "mine"
    check_directory(tmp_path / "none")
    check_directory(None)


def test_a_save_that_fails_leaves_nothing_half_written_and_no_last_word(tmp_path):
    """In a process of its own, where no file may pass 64 KiB."""
    code = """
import resource, signal, sys
import jax.numpy as jnp
from jaxlimit._core.checkpoints import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Checkpoints(sys.argv[1], 1, dict, unit="step") as kept:
    kept.save(1, {"x": jnp.arange(300_000.0)}, last=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    kept.save(2, {"x": jnp.sin(jnp.arange(300_000.0))}, last=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(checkpoints.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    *_, last = done.stderr.strip().splitlines()
    says = (
        f"OSError: could not save the checkpoint of step 2; the checkpoint of step 1 in {tmp_path}"
    )
    assert last.startswith(says), done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == {
        "1", checkpoints.MARK, ".jaxlimit.lock",
    }  # fmt: skip


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxlimit\[train\]'"):
        check_directory(tmp_path)
