"""The command: names and mistakes, the whole way of a new user, and how it ends when it is told."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlimit import formats, reports, training
from jaxlimit.cli import main, peer_rows
from jaxlimit.cli.tasks import find_task

QUICK = ["--num-steps", "16", "--num-gap-steps", "8", "--num-layer-steps", "0", "--num-ratios",
         "9", "--num-held-out", "6", "--accuracy-tolerance", "0.03", "--quiet"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def said(capsys, code, arguments):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out + err


def test_mistakes_are_told_in_a_line(here, capsys):
    (here / "my_model.py").write_text("def task():\n    return 3\n\nfive = 5\n")
    for arguments, words in (
        (["stduy", "x.py:task"], "did you mean 'study'?"),
        (["study", "my_modle.py:task"], "did you mean 'my_model.py'?"),
        (["study", "my_model.py:tsk"], "did you mean 'task'?"),
        (["study", "no_such_package:task"], "there is no module 'no_such_package'"),
        (["study", "my_model.py:five"], "must be a function, got int"),
        (["prune", "my_model.py:tsk"], "did you mean 'task'?"),
        (["compare", "a", "b"], "must be the folder of a saved study"),
        (["new", "linen", "my_model.py"], "is there already"),
        (["bench", "--case", "fc5-digit"], "did you mean 'fc5-digits'"),
        (["bench", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["bench", "--add", "none.py:f"], "there is no file none.py"),
        (["run", "--model", "fc55"], "did you mean 'fc5'?"),
        (["run", "--seeds"], "seeds"),
        (["run", "--seeds", "0", str(2**32)], "seeds must be below 2**32"),
        (["run", "--learning-rate", "nan"], "learning_rate must be finite and not negative"),
        (["run", "--learning-rate", "0"], "learning_rate must lie in (0, inf]"),
        (["run", "--l1", "-1"], "l1 must be finite and not negative, got -1.0"),
        (["run", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["run", "--epochs", "-1"], "epochs must be at least 1, got -1"),
        (["run", "--num-steps", "0"], "num_steps must be at least 1, got 0"),
        (["run", "--accuracy-tolerance", "1.5"], "accuracy_tolerance must be at most 1, got 1.5"),
        (["study", "my_model.py:task", "--num-steps", "0"], "num_steps must be at least 1"),
    ):
        found = said(capsys, 2, arguments)
        assert words in found, (arguments, found)
        if arguments[0] != "run":
            assert len(found.strip().splitlines()) == 1
    found = said(capsys, 1, ["study", "my_model.py:task"])
    assert "my_model.py:task must return a jaxlimit.Task, got int" in found
    assert not (here / "runs").exists()


def test_a_run_that_cannot_be_ends_before_training_and_leaves_nothing(here, capsys, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it trained"))
    (here / "file").write_text("")
    for arguments, words in (
        (["--dataset", "digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["--data-dir", "none"], "data_dir must be a folder that exists, got none"),
        (["--data-dir", "file", "--dataset", "cifar10"], "must be a folder that exists, got file"),
        (["--output", "file"], "folder must be a folder, file is a file"),
        (["--output", "file/below"], "folder must be a folder, file is a file"),
    ):
        assert words in said(capsys, 1, ["run", *arguments])
        assert [path.name for path in here.iterdir()] == ["file"]

    # Root may write anywhere, so what the system says of the folder is replaced.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "must be writable" in said(capsys, 1, ["run", "--output", "mine/run"])
    assert not (here / "mine").exists()
    monkeypatch.undo()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    found = said(capsys, 1, ["run", "--output", str(here / "mine")])
    assert f"folder {here / 'mine' / 'seed-0'} could not be made: Permission denied" in found


def test_too_few_images_for_a_batch_leave_nothing(here, capsys):
    found = said(capsys, 1, ["run", "--max-images", "5"])
    assert "batch_size must be at most the number of images 5, got 128" in found
    assert not list(here.iterdir())


def test_errors_of_the_users_own_code_show_where(here, capsys):
    (here / "broken.py").write_text("def task():\n    return 1 / 0\n")
    assert main(["study", "broken.py:task"]) == 1
    assert 'broken.py", line 2, in task' in capsys.readouterr().err


def test_help_loads_no_numerics():
    code = (
        "import sys\nfrom jaxlimit.cli import main\n"
        "assert main(['--help']) == 0 and main(['study', '--help']) == 0\n"
        "heavy = {'flax', 'optax', 'orbax', 'matplotlib', 'scipy', 'jinja2', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
def test_the_example_gives_a_task(here, library, capsys, monkeypatch):
    assert "jaxlimit study mine.py:task" in said(capsys, 0, ["new", library, "mine.py"])
    source = (here / "mine.py").read_text().replace("epochs=30", "epochs=1")
    (here / "mine.py").write_text(source)
    task = find_task("mine.py:task")
    again = find_task("mine.py:task")  # from the checkpoint
    for one, other in zip(*map(jax.tree.leaves, (task.params, again.params)), strict=True):
        np.testing.assert_array_equal(one, other)


def way_of_a_new_user(here, capsys, library, budget, mask):
    """`new`, `study`, `prune`, load: the accuracy of the pruned network is the one reported."""
    said(capsys, 0, ["new", library])
    source = (here / "my_model.py").read_text().replace("epochs=30", "epochs=4")
    (here / "my_model.py").write_text(source)
    out = said(capsys, 0, ["study", "my_model.py:task", *QUICK, *budget])
    assert "magnitude, measured" in out
    folder = here / "runs" / "my_model-task"
    result = reports.read(folder)
    assert (folder / "report.html").stat().st_size < 1e6
    out = said(capsys, 0, ["prune", "my_model.py:task", "--mask", mask])
    assert "numbers are not zero" in out
    task = find_task("my_model.py:task")
    suffix = task.checkpoint.path.suffix
    pruned = formats.load(here / f"my_model-pruned{suffix}", like=task.params).params
    marks = formats.load(here / f"my_model-pruned-mask{suffix}", like=task.params).params
    leaves = [jax.tree.leaves(tree) for tree in (pruned, marks, task.params)]
    for leaf, keep, dense in zip(*leaves, strict=True):
        np.testing.assert_array_equal(leaf, np.where(keep, dense, 0))
    held = np.concatenate([batch[1] for batch in task.held_out])
    right = [float(task.accuracy(pruned, batch)) * len(batch[1]) for batch in task.held_out]
    accuracy = sum(right) / len(held)
    assert f"accuracy: {100 * accuracy:.3g} %" in out
    return result, accuracy, sum(int(keep.sum()) for keep in leaves[1])


def test_the_way_of_a_new_user_who_has_no_time(here, capsys):
    result, _, kept = way_of_a_new_user(here, capsys, "linen", ["--budget", "0"], "magnitude")
    assert result["found"] is None
    assert kept == round(result["measured"]["by_loss"] * result["dim"])
    assert any(what.startswith("mask (the budget") for what in result["missing"])
    out = said(capsys, 2, ["prune", "my_model.py:task", "--ratio", "1.5", "--mask", "magnitude"])
    assert "--ratio must lie in [0, 1]" in out
    out = said(capsys, 2, ["prune", "my_model.py:task", "--mask", "found"])
    assert "it has magnitude" in out
    out = said(capsys, 0, ["plan", "my_model.py:task"])
    assert "one evaluation of the data" in out
    product = float(re.search(r"one Hessian product: about (\S+) s", out)[1])
    by_layer = float(re.search(r"limits by layer: up to (\S+) s", out)[1])
    assert by_layer == pytest.approx(3 * 48 * product, rel=0.02)  # as rounded for the eye


@pytest.mark.slow
@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
def test_the_whole_way_of_a_new_user(here, capsys, library):
    result, accuracy, kept = way_of_a_new_user(here, capsys, library, [], "found")
    assert kept == result["found"]["num_kept"]
    np.testing.assert_allclose(accuracy, result["found"]["accuracy"], atol=1e-6)
    assert result["certified"]["num_kept"] <= result["found"]["num_kept"]


def test_bench_takes_ones_own(here, capsys):
    (here / "mine.py").write_text(
        "import jax\nfrom jaxlimit import flatten_weights\n\n"
        "def product(loss, params, batches):\n"
        "    w, back = flatten_weights(params)\n"
        "    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)\n"
        "    g = jax.grad(lambda w: loss(back(w), flat))\n"
        "    return jax.jit(lambda v: 2 * jax.jvp(g, (w,), (v,))[1])\n"
    )
    out = said(capsys, 0, ["bench", "--add", "mine.py:product", "--repeats", "1"])
    errors = {row.split("|")[1].strip(): float(row.split("|")[-2])
              for row in out.splitlines() if row.startswith("| ") and "e" in row.split("|")[-2]
              and "relative" not in row}  # fmt: skip
    assert errors.pop("jaxlimit, linearized") < 1e-5
    row = next(line for line in out.splitlines() if line.startswith("| yours"))
    assert float(row.split("|")[-2]) == pytest.approx(1.0, rel=1e-4)  # it is twice too large


TASK = """
import os, sys, time
import jax, jax.numpy as jnp, numpy as np
from jaxlimit import Task, curvature
from jaxlimit.studies import stages

stop = os.environ.get("STOP_AT")
if stop:
    def wait(*args, **kwargs):
        print("reached", stop, file=sys.stderr, flush=True)
        time.sleep(100)
    setattr(stages, stop, wait)

def task():
    if stop == "task":
        wait()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 4)).astype(np.float32)
    w = {"a": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32),
         "b": jnp.asarray(rng.standard_normal((3, 1)), jnp.float32)}
    y = jnp.tanh(x @ w["a"]) @ w["b"] + 0.1 * jnp.asarray(rng.standard_normal((2, 32, 1)))
    apply = lambda p, batch: jnp.tanh(batch[0] @ p["a"]) @ p["b"]
    loss = curvature.split_loss(apply, lambda out, batch: jnp.mean((out - batch[1]) ** 2))
    return Task(loss, w, (jnp.asarray(x), y))
"""
ARGUMENTS = ["study", "small.py:task", "--num-steps", "8", "--num-gap-steps", "4",
             "--num-layer-steps", "4", "--num-ratios", "9", "--quiet"]  # fmt: skip


def start(folder, stop=None):
    environment = os.environ | ({} if stop is None else {"STOP_AT": stop})
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "jaxlimit.cli", *ARGUMENTS]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        # A job in the background of a shell ignores it, and so would its children.
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def interrupt(folder, stop, number):
    process = start(folder, stop)
    for line in process.stderr:
        if line.startswith("reached"):
            break
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line.strip()]
    assert "Traceback" not in err, err
    assert len(lines) <= 3
    assert lines[-1] == "jaxlimit " + " ".join(ARGUMENTS)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]


def outcome(folder):
    result = json.loads((folder / "runs" / "small-task" / "result.json").read_text())
    return {name: value for name, value in result.items()
            if name not in ("about", "seconds", "digest")}  # fmt: skip


def finish(folder):
    process = start(folder)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return outcome(folder)


def test_interrupted_before_anything_is_done(tmp_path):
    (tmp_path / "small.py").write_text(TASK)
    interrupt(tmp_path, "measure", signal.SIGINT)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_interrupted_in_every_stage(tmp_path):
    for name in ("whole", "halting"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "small.py").write_text(TASK)
    wanted = finish(tmp_path / "whole")
    stages = ("task", "measure", "search", "kept_by_layer", "predict", "at_prediction",
              "limits_by_layer")  # fmt: skip
    for stage in stages:
        for number in (signal.SIGINT, signal.SIGTERM):
            interrupt(tmp_path / "halting", stage, number)
    assert finish(tmp_path / "halting") == wanted


def rows_of(table):
    """The numbers of a printed table: time, first call, products, error of each row."""
    lines = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("|")]
    return {name.strip(): [float(x) for x in numbers] for name, *numbers in lines[2:]}


@pytest.mark.parametrize("kind", ["trace", "spectrum"])
def test_peers_stand_beside_ours_where_they_are_installed(here, capsys, kind, monkeypatch):
    pytest.importorskip("matfree")
    (here / "mine.py").write_text(
        "import jax, jax.numpy as jnp\n\n"
        "def trace(product, key, dim):\n"
        "    v = jax.random.rademacher(key, (6, dim), jnp.float32)\n"
        "    return jnp.mean(jax.vmap(lambda v: v @ product(v))(v))\n\n"
        "def spectrum(product, key, dim):\n"
        "    return jnp.array([product(jnp.ones(dim)).mean(), 1.0]), jnp.array([0.5, 0.5])\n"
    )
    asked = ["bench", "--kind", kind, "--repeats", "1"]
    rows = rows_of(said(capsys, 0, [*asked, "--add", f"mine.py:{kind}"]))
    assert rows["yours"][2] == {"trace": 6, "spectrum": 1}[kind]
    peers = [name for name in rows if name.startswith("matfree")]
    assert len(peers) == {"trace": 2, "spectrum": 1}[kind]
    for name in peers:
        assert rows[name][2] == 48
        assert rows[name][3] < 0.5
    monkeypatch.setattr(peer_rows, "_has", lambda name: False)
    assert not any("matfree" in name for name in rows_of(said(capsys, 0, asked)))
