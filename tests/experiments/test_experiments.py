"""The main experiment end to end: what it writes, what it says, and that it resumes."""

import dataclasses
import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from lab_results import made_up

from jaxlimit import datasets, models, planning, training
from jaxlimit.lab import main_job, report, results, runs, sides_table
from jaxlimit.lab.console import Stages
from jaxlimit.lab.content import read_json
from jaxlimit.lab.settings import RunConfig, Training

pytest.importorskip("rich")
pytest.importorskip("tyro")

import flax.linen as nn
import lomp
import numpy as np

SCRIPTS = Path(lomp.__file__).parent

KEYS = [
    "dim",
    "epsilon",
    "prediction.ratio",
    "prediction.lower",
    "prediction.upper",
    "corrected.ratio",
    "measured.by_loss",
    "measured.by_accuracy",
    "baseline.support",
    "baseline.taylor",
    "gap",
    "seconds",
]


def at(result, path):
    for name in path.split("."):
        result = result[name]
    return result


def test_run_writes_its_folder_and_resumes(tmp_path, capsys):
    run = RunConfig(
        training=Training(epochs=2),
        training_dtype="bfloat16",
        max_images=700,
        num_steps=6,
        num_gap_steps=6,
        hessian_images=256,
        images_at_once=300,
        num_ratios=12,
        find_mask=False,
    )
    config = main_job.Config(run, output=tmp_path / "run")
    main_job.main(config)
    folder = tmp_path / "run" / "seed-0"
    first = json.loads((folder / "result.json").read_text())
    assert first["dim"] == 877_010
    assert set(first["speed"]) == {"images_per_second"}  # six steps are one chunk, compiled in it
    for key in KEYS:
        assert at(first, key) is not None, key
    assert 0 <= first["prediction"]["lower"] <= first["prediction"]["ratio"]
    assert first["prediction"]["ratio"] <= first["prediction"]["upper"] <= 1
    assert any("256 of the 700 training images" in reason for reason in first["reasons"])
    figures = [folder / f"{n}.png" for n in ("density", "theory_and_practice", "sweep", "training")]
    assert all(10_000 < figure.stat().st_size < 200_000 for figure in figures)
    assert all(figure.with_suffix(".svg").exists() for figure in figures)
    assert "resuming" not in capsys.readouterr().out
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name, values in first["training"].items():
        assert values == pytest.approx([line[name] for line in written], rel=1e-5), name

    main_job.main(config)
    said = capsys.readouterr().out
    assert "2 of 2 epochs" in said
    assert "reusing the spectra" in said
    second = json.loads((folder / "result.json").read_text())
    assert second["speed"] == {}  # nothing was trained and no product taken
    for key in KEYS[:-1]:
        assert at(second, key) == pytest.approx(at(first, key), rel=1e-5), key


def test_a_hessian_of_all_images_is_no_sample():
    assert report.sampled(10_000, 1437) == report.sampled(1437, 1437) == ()
    assert len(report.sampled(1436, 1437)) == 1


def test_speeds_count_from_the_first_report_and_know_the_share_of_the_peak(monkeypatch):
    clock = iter([0.0, 10.0, 14.0, 20.0, 30.0, 30.5]).__next__
    monkeypatch.setattr("jaxlimit.lab.console.time.perf_counter", clock)
    stages = Stages()
    for epoch in (41, 42, 43):  # taken up at epoch 40
        stages.show("training", epoch, 100)
    assert stages.rate("training") == 2 / 14
    for steps in (32, 64):
        stages.show("spectrum", steps, 64)
    stages.show("sweep", 1, 1)
    assert stages.rate("sweep") is None

    images = np.zeros((300, 32, 32, 3), np.uint8)
    data = datasets.Dataset(images, np.zeros(300, np.int32), 10)
    module = models.create("fc5", num_classes=10)
    params = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    trained = training.TrainingResult(params, {}, training.channel_statistics(images), None, 0)
    net = runs.Net(module, trained, data, data, None)
    config = RunConfig(images_at_once=100, hessian_images=250)
    speeds = {"images_per_second": 256 * 2 / 14, "products_per_second": 3.2}
    assert report.speed(net, config, stages) == pytest.approx(speeds)

    peaks = {"tf32": 1e9, "float32": 1e8}
    monkeypatch.setattr(planning, "data_sheet_flops", peaks.get)
    widths = [3072, 1000, 600, 300, 100, 10]
    forward = [2 * a * b for a, b in itertools.pairwise(widths)]
    gradient, product = 3 * sum(forward) - forward[0], 6 * sum(forward) - 4 * forward[0]
    speeds["training_share_of_peak"] = 256 * 2 / 14 * gradient / 1e9
    speeds["products_share_of_peak"] = 250 * 3.2 * product / 1e8
    assert report.speed(net, config, stages) == pytest.approx(speeds)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "fc6"}, "fc5"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_ratios": 2}, "num_ratios must be at least 3"),
        ({"max_images": -5}, "max_images must be at least 1, got -5"),
        ({"tolerance": -0.1}, "tolerance must be at least 0"),
        ({"accuracy_tolerance": math.nan}, "accuracy_tolerance must be at least 0"),
        ({"smallest_ratio": 1.0}, r"smallest_ratio must lie in \(0, 1\)"),
    ],
)
def test_settings_are_checked_before_anything_runs(settings, says):
    with pytest.raises(ValueError, match=says):
        RunConfig().replace(**settings)


def test_no_spectrum_of_another_network_is_taken(tmp_path, capsys, monkeypatch):
    """A folder whose checkpoint was removed, as the message on another run's says, and reused."""
    monkeypatch.setattr(runs.models, "create", lambda *_, **__: Small())
    largest = []
    for rate in (0.05, 0.5):
        config = RunConfig(max_images=200, num_steps=4, num_gap_steps=4)
        config = config.replace(epochs=2, learning_rate=rate)
        shutil.rmtree(tmp_path / "checkpoint", ignore_errors=True)
        with Stages() as stages:
            net = runs.train(config, 0, tmp_path, stages)
            for _ in range(2):
                largest.append(runs.predict(net, config, 0, tmp_path, stages).largest)
    assert capsys.readouterr().out.count("reusing the spectra") == 2  # each its own
    assert largest[0] == largest[1] != largest[2] == largest[3]


def test_a_result_is_known_by_what_made_it(tmp_path):
    config = RunConfig().replace(epochs=3)
    assert results.known_result(tmp_path, config) is None
    results.write_result(tmp_path, made_up(config.replace(data_dir=tmp_path), 7))
    assert results.known_result(tmp_path, config).seed == 7
    for other in ({"momentum": 0.5}, {"num_steps": 8}):
        assert results.known_result(tmp_path, config.replace(**other)) is None
    (tmp_path / "result.json").write_text('{"config": ')
    with pytest.raises(ValueError, match=r"result\.json cannot be read as JSON: .*move it away"):
        results.known_result(tmp_path, config)


def test_a_changed_digit_is_noticed_before_it_is_believed(tmp_path):
    config = RunConfig().replace(epochs=3)
    results.write_result(tmp_path, made_up(config, pruned_accuracy=0.125))
    path = tmp_path / "result.json"
    path.write_text(path.read_text().replace("0.125", "0.225"))
    for read in (
        lambda: read_json(path),
        lambda: results.read_result(tmp_path),
        lambda: results.known_result(tmp_path, config),
    ):
        with pytest.raises(ValueError, match=r"result\.json was changed since it was written"):
            read()


def test_no_spectrum_of_a_run_that_died_is_taken_for_another(tmp_path, capsys, monkeypatch):
    """Run A; B in the same folder dies between two of its files; A asked again gives A's bits."""
    monkeypatch.setattr(runs.models, "create", lambda *_, **__: Small())
    base = RunConfig(max_images=300, num_steps=4, num_gap_steps=4).replace(epochs=2)
    few, many = (base.replace(hessian_images=n) for n in (64, 256))
    with Stages() as stages:
        net = runs.train(few, 0, tmp_path, stages)

        def ratio(config):
            return float(runs.predict(net, config, 0, tmp_path, stages).prediction.ratio)

        first = ratio(few)
        identity = runs.spectra_identity(net, few, 0)
        read_of_a = made_up(spectra=identity)
        results.read_spectrum(tmp_path, read_of_a)
        save, written = runs.spectrum.save, []

        def die_after_one(path, measure, **how):
            if written:
                raise KeyboardInterrupt
            save(path, measure, **how)
            written.append(path)

        with monkeypatch.context() as patch:
            patch.setattr(runs.spectrum, "save", die_after_one)
            with pytest.raises(KeyboardInterrupt):
                ratio(many)
        # What is left is B's, and no result of A is read off it.
        with pytest.raises(ValueError, match="images: it has 256, asked for was 64"):
            results.read_spectrum(tmp_path, read_of_a)
        assert ratio(few) == first
    assert "reusing the spectra" not in capsys.readouterr().out


def test_a_second_run_in_the_same_folder_is_told(tmp_path, monkeypatch):
    folder = tmp_path / "seed-0"
    monkeypatch.setattr(runs, "train", lambda *_: runs.run(RunConfig(), 0, folder))
    with pytest.raises(OSError, match=r"seed-0 is in use by another call in this process, since"):
        runs.run(RunConfig(), 0, folder)


def test_both_sides_stand_in_the_result(tmp_path, capsys, monkeypatch):
    """The mask that is found keeps no more than magnitude, and no less than is certified."""
    monkeypatch.setattr(runs.models, "create", lambda *_, **__: Small())
    config = RunConfig(max_images=300, num_steps=4, num_gap_steps=4, num_ratios=20)
    config = config.replace(epochs=20, l1=1e-3, layer_steps=3)
    result = runs.run(config, 0, tmp_path)
    sides = result.two_sides
    assert 0 < sides.certificate <= sides.found <= sides.candidates["magnitude"]
    assert sides.found == min(sides.candidates.values())
    assert 0 <= sides.open <= 1 - sides.certificate
    # The sweep tries few ratios; the search finds magnitude's limit to the unit.
    assert sides.candidates["magnitude"] <= result.measured.by_loss + 1e-6
    assert results.read_result(tmp_path) == result == results.known_result(tmp_path, config)
    assert results.known_result(tmp_path, config.replace(find_mask=False)) is None
    assert (tmp_path / "two_sides.png").stat().st_size > 5_000
    layers = {way: sum(counts.values()) for way, counts in sides.layers.items()}
    assert layers["all"] == result.dim
    assert layers["found"] == round(sides.found * result.dim)
    assert layers["magnitude"] == round(sides.candidates["magnitude"] * result.dim)
    assert 0 < layers["by_layer"] <= result.dim
    assert 0 < sides.live <= 1
    assert 0 <= sides.accuracy <= 1
    rise = sides.loss - result.dense.loss
    assert abs(sum(sides.shares.values()) * result.epsilon - rise) < 1e-4 * result.dense.loss
    assert sides.residual["num_support"] == round(sides.live * result.dim)
    table = sides_table.table({"fc5-digits": [result, result]})
    assert f"**{100 * sides.found:.3g} ± 0 %** ({sides.method})" in table
    assert sides_table.rows({"fc5-digits": [result]})["FC5, digits"]["found"] == sides.found
    report.show(result, tmp_path)
    assert f"{sides.found:.3%}" in capsys.readouterr().out


def test_a_cut_spectrum_names_its_file(tmp_path):
    path = tmp_path / "spectrum.npz"
    measure = runs.spectrum.exact_measure(jnp.arange(4.0))
    runs.spectrum.save(path, measure, identity={"seed": 0})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"spectrum\.npz must be .*; move it away"):
        results.kept_spectrum(path, {"seed": 0})
    assert results.kept_spectrum(tmp_path / "none.npz", {}) is None


def test_dry_run_prints_the_plan_and_does_nothing_else(tmp_path, capsys):
    config = main_job.Config(RunConfig(num_steps=64), dry_run=True, output=tmp_path / "run")
    main_job.main(config)
    said = capsys.readouterr().out
    assert "D = 877,010" in said
    # Of so few steps every vector is kept, in float32.
    (basis,) = (line for line in said.splitlines() if line.startswith("basis "))
    assert basis.split() == ["basis", f"{64 * 4 * 877_010 / 2**30:.3g}", "GiB"]
    assert not (tmp_path / "run").exists()


class Small(nn.Module):
    """Of 610 weights."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(10)(nn.relu(nn.Dense(8)(images.reshape(len(images), -1))))


def test_lomp_writes_beside_the_run_and_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs.models, "create", lambda *_, **__: Small())
    run = RunConfig(max_images=300).replace(epochs=2)
    config = lomp.Config(run, ratios=(1.0, 1 / 610), finetune_epochs=2, output=tmp_path / "run")
    lomp.main(config)
    folder = tmp_path / "run" / "seed-0"
    first = json.loads((folder / "lomp.json").read_text())
    assert [row["ratio"] for row in first["rows"]] == [pytest.approx(1 / 610), 1.0]
    assert first["limits"] is None
    single, whole = first["rows"]
    assert whole["one_shot"] == first["dense"]
    # A single weight tells no image from another, so that all are given one class.
    labels = datasets.load("digits", "test").labels[:300]
    shares = np.bincount(labels) / 300
    for kind in ("one_shot", "fine_tuned"):
        assert np.abs(shares - single[kind]).min() < 1e-6
    assert 10_000 < (folder / "lomp.png").stat().st_size < 200_000

    capsys.readouterr()
    measured = results.Measured(0.02, 0.02, 0.02)
    known = made_up(run.replace(l1=1.0), measured=measured)
    results.write_result(folder, known)
    assert lomp.known_limits(folder, run) is None  # of another network
    results.write_result(folder, dataclasses.replace(known, config=run))
    lomp.main(config)
    assert "2 of 2 epochs" in capsys.readouterr().out
    second = json.loads((folder / "lomp.json").read_text())
    assert second["limits"] == {"predicted": known.prediction.ratio, "measured": 0.02}
    assert second["rows"] == first["rows"]

    (folder / "lomp.json").unlink()
    monkeypatch.setattr(lomp.distributed, "is_first", lambda: False)
    lomp.main(dataclasses.replace(config, ratios=(1.0,)))
    assert not (folder / "lomp.json").exists()


def test_fine_tuning_takes_the_batch_size_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.models, "create", lambda *_, **__: Small())
    run = RunConfig(max_images=32).replace(epochs=1, batch_size=16)
    lomp.main(lomp.Config(run, ratios=(0.5,), finetune_epochs=1, output=tmp_path))
    [row] = json.loads((tmp_path / "seed-0" / "lomp.json").read_text())["rows"]
    assert row["ratio"] == 0.5


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ratios": (0.1, 1.5)}, r"ratios must lie in \[0, 1\], at least one, got \(0.1, 1.5\)"),
        ({"ratios": (math.nan,)}, "ratios must lie in"),
        ({"ratios": ()}, "ratios must lie in"),
        ({"finetune_epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_bad_settings_are_refused_before_training(tmp_path, monkeypatch, settings, says):
    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match=says):
        lomp.main(lomp.Config(output=tmp_path, **settings))


def test_lomp_dry_run_does_nothing_else(tmp_path, capsys):
    lomp.main(lomp.Config(dry_run=True, output=tmp_path / "run"))
    assert "D = 877,010" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "script", [pytest.param("lomp.py --dry-run", marks=pytest.mark.slow), "tables.py --collect"]
)
def test_distributed_starts_a_job(script, tmp_path):
    """A job of one process, which waits for all of itself and then does its work."""
    name, flag = script.split()
    where = {"lomp.py": "output", "tables.py": "results"}[name]
    output = tmp_path / "out"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPTS / name),
            "--distributed",
            flag,
            f"--{where}={tmp_path / 'out'}",
        ],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "1",
            "JAX_PROCESS_ID": "0",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "processes of the job to begin at" in done.stderr
    assert (output / "table.md").exists() == (name == "tables.py")


@pytest.mark.parametrize(
    ("change", "memory"),
    [
        ({"max_images": 300}, 20e9),
        ({"images_at_once": 100}, 110e6),  # too little to linearise: batches matter
    ],
)
def test_dry_run_plans_for_the_data_of_the_run(change, memory, monkeypatch, capsys):
    monkeypatch.setattr(planning.memory, "usable_memory", lambda: memory)
    for settings in ({}, change):
        run = RunConfig(num_steps=64, **settings)
        main_job.main(main_job.Config(run, dry_run=True))
    default, changed = capsys.readouterr().out.split("fc5 on digits")[1:]
    assert default != changed


def test_dry_run_plans_for_the_devices_of_the_run(monkeypatch, capsys):
    """Eight devices hold the bases that one alone cannot."""
    monkeypatch.setattr(planning.memory, "usable_memory", lambda: 0.42e9)
    config = main_job.Config(RunConfig(num_steps=64, num_probes=4), dry_run=True)
    main_job.main(config)
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    monkeypatch.setattr(runs.distributed, "all_devices", lambda: mesh)
    main_job.main(config)
    alone, shared = capsys.readouterr().out.split("fc5 on digits")[1:]
    assert "basis in no memory" in alone
    assert "D = 877,010, on each of 8 devices" in shared
    assert "basis in device" in shared


def test_missing_data_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    run = RunConfig(dataset="cifar100", data_dir=tmp_path)
    config = main_job.Config(run, output=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="cifar100"):
        main_job.main(config)


@pytest.mark.slow
def test_default_predicts_what_pruning_then_finds(tmp_path):
    """FC5 on digits at its l1 minimum: the prediction is within 15 % of the measured limit."""
    main_job.main(main_job.Config(output=tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "seed-0" / "result.json").read_text())
    measured = result["measured"]["by_loss"]
    assert result["prediction"]["ratio"] == pytest.approx(measured, rel=0.15)
