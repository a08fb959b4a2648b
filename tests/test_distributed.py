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

from jaxlimit import datasets, models, training

SCRIPT = Path(__file__).parents[1] / "experiments" / "pruning_limit.py"
SMALL = {"epochs": 4, "num-steps": 32, "num-gap-steps": 8, "num-ratios": 12, "hessian-images": 203}


def start(folder, num_processes, **settings):
    """Start the processes of one job, or a lone one that is none."""
    command = [sys.executable, str(SCRIPT), "--output", str(folder)]
    command += [f"--{name}={value}" for name, value in (SMALL | settings).items()]
    folder.mkdir(parents=True, exist_ok=True)
    if num_processes > 1:
        command.append("--distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for i in range(num_processes):
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
        checkpoint_dir=folder / "seed-0" / "checkpoint",
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
