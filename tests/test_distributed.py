"""The experiment as several real processes over loopback: equal to one, and through a kill."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlimit import datasets, distributed, models, training

SCRIPT = Path(__file__).parents[1] / "experiments" / "pruning_limit.py"
SMALL = {"epochs": 4, "num-steps": 32, "num-gap-steps": 8, "num-ratios": 12, "hessian-images": 203}


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(folder, num_processes, *, delay=0, **settings):
    """Start the processes of one job, or a lone one that is none; all but the first delayed."""
    command = [sys.executable, str(SCRIPT), "--output", str(folder)]
    command += [f"--{name}={value}" for name, value in (SMALL | settings).items()]
    folder.mkdir(parents=True, exist_ok=True)
    if num_processes > 1:
        command.append("--distributed")
    address = free_address()
    processes = []
    for i in range(num_processes):
        time.sleep(delay if i else 0)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(num_processes),
            "JAX_PROCESS_ID": str(i),
        }
        with (folder / f"log-{i}.txt").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return processes


def finish(folder, processes, timeout=500):
    """Wait for the end, and return what the run wrote."""
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("log-*.txt")))
    assert not any(codes), logs
    return json.loads((folder / "seed-0" / "result.json").read_text())


def run(folder, num_processes, **settings):
    return finish(folder, start(folder, num_processes, **settings))


def weights(folder, epochs):
    """Read the trained weights from a run's checkpoint."""
    train = datasets.load("digits", "train")
    config = training.TrainingConfig(
        epochs=epochs, learning_rate=0.05, schedule="cosine", l1=3e-4, seed=0
    )
    result = training.fit(
        models.create("fc5", num_classes=10),
        train,
        config,
        monitor=training.Monitor(checkpoint_dir=folder / "seed-0" / "checkpoint"),
    )
    assert result.resumed_from == epochs
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result.params)])


def check_equal(folder, result, wanted_folder, wanted, epochs):
    got, expected = weights(folder, epochs), weights(wanted_folder, epochs)
    assert np.linalg.norm(got - expected) <= 1e-4 * np.linalg.norm(expected)
    for path in (("eigenvalues", "largest"), ("prediction", "ratio"), ("dense", "loss")):
        value, other = result[path[0]][path[1]], wanted[path[0]][path[1]]
        assert value == pytest.approx(other, rel=1e-3), path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(folder, 1)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_give_what_one_gives(num_processes, alone, tmp_path):
    result = run(tmp_path, num_processes)
    assert result["environment"]["num_devices"] == num_processes
    check_equal(tmp_path, result, *alone, SMALL["epochs"])
    assert not (tmp_path / "log-1.txt").read_text().count("PREDICTED")


@pytest.mark.slow
def test_the_functions_on_two_processes_are_those_on_one(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("process_cases.py")), free_address()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    settings = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = [subprocess.Popen([*command, i, str(tmp_path)], **settings) for i in "01"]
    said = [process.communicate(timeout=500)[0].decode()[-3000:] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


@pytest.mark.slow
def test_a_process_that_comes_late_is_waited_for(alone, tmp_path):
    result = run(tmp_path, 2, delay=8)
    assert "waiting up to 120 s for all 2 processes" in (tmp_path / "log-0.txt").read_text()
    check_equal(tmp_path, result, *alone, SMALL["epochs"])


def wait_for(pattern, folder, processes, timeout=400):
    """Wait until the run has written something, and go on at once."""
    end = time.monotonic() + timeout
    while not any(folder.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern} in {timeout} s"
        assert all(process.poll() is None for process in processes), "the job ended too early"
        time.sleep(0.05)


LONG = {"epochs": 40, "num-steps": 384, "hessian-images": 203}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(folder, 2, **LONG)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("written", ["checkpoint/[1-9]*", "lanczos-*/spectrum/[1-9]*"])
def test_a_killed_process_ends_the_job_and_the_next_goes_on(written, victim, undisturbed, tmp_path):
    processes = start(tmp_path, 2, **LONG)
    wait_for(f"seed-0/{written}", tmp_path, processes)
    processes[victim].kill()
    survivor = processes[1 - victim]
    try:
        assert survivor.wait(90) != 0
    finally:
        survivor.kill()
    said = (tmp_path / f"log-{1 - victim}.txt").read_text()
    assert "ends the job" in said or "another task died" in said, said[-3000:]
    assert not (tmp_path / "seed-0" / "result.json").exists()
    result = run(tmp_path, 2, **LONG)
    folder, wanted = undisturbed
    np.testing.assert_array_equal(weights(tmp_path, 40), weights(folder, 40))
    assert result["prediction"] == wanted["prediction"]
    assert result["eigenvalues"] == wanted["eigenvalues"]


SAYING = """
from jaxlimit import distributed
with distributed.job(start_seconds=5, resume="Begin again."):
    print("began")
"""
OF_JOBS = ("JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM", "OMPI", "KUBERNETES")


def begin(**environment):
    """Begin a job in another process, whose environment says this and nothing else of jobs."""
    others = {name: v for name, v in os.environ.items() if not name.startswith(OF_JOBS)}
    return subprocess.run(
        [sys.executable, "-c", SAYING],
        env=others | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_job_that_nothing_describes_says_what_would():
    done = begin()
    assert done.returncode == 1
    assert "began" not in done.stdout
    assert "RuntimeError: the job did not start" in done.stderr
    assert "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID" in done.stderr


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID must be an integer, at least 0, got 'x'"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID must be an integer, at least 0, got '-1'"),
        ({"JAX_NUM_PROCESSES": "2.5"}, "JAX_NUM_PROCESSES must be an integer, .* got '2.5'"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID must be below JAX_NUM_PROCESSES 2, got 2",
        ),
    ],
)
def test_bad_numbers_in_the_environment_are_named(environment, says, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=says), distributed.job():
        pytest.fail("the job began")


@pytest.mark.slow
def test_a_process_that_never_comes_ends_the_job():
    address = free_address()
    done = begin(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0")
    assert done.returncode != 0
    assert "began" not in done.stdout
    assert f"waiting up to 5 s for all 2 processes of the job to begin at {address}" in done.stderr
    assert "Begin again." in done.stderr
