"""The main experiment end to end: what it writes, what it says, and that it resumes."""

import json
import sys
from pathlib import Path

import jax
import pytest

from jaxlimit import planning

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
pytest.importorskip("rich")
pytest.importorskip("tyro")

import pruning_limit

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
    config = pruning_limit.Config(
        epochs=2,
        training_dtype="bfloat16",
        max_images=700,
        num_steps=6,
        hessian_images=256,
        images_at_once=300,
        num_ratios=12,
        output=tmp_path / "run",
    )
    pruning_limit.main(config)
    folder = tmp_path / "run" / "seed-0"
    first = json.loads((folder / "result.json").read_text())
    assert first["dim"] == 877_010
    assert set(first["speed"]) == {"images_per_second", "products_per_second"}
    for key in KEYS:
        assert at(first, key) is not None, key
    assert 0 <= first["prediction"]["lower"] <= first["prediction"]["ratio"]
    assert first["prediction"]["ratio"] <= first["prediction"]["upper"] <= 1
    figures = [folder / f"{n}.png" for n in ("density", "theory_and_practice", "sweep")]
    assert all(10_000 < figure.stat().st_size < 200_000 for figure in figures)
    assert "resuming" not in capsys.readouterr().out

    pruning_limit.main(config)
    said = capsys.readouterr().out
    assert "2 of 2 epochs" in said
    assert "reusing the spectra" in said
    second = json.loads((folder / "result.json").read_text())
    assert second["speed"] == {}  # nothing was trained and no product taken
    for key in KEYS[:-1]:
        assert at(second, key) == pytest.approx(at(first, key), rel=1e-5), key


def test_dry_run_prints_the_plan_and_does_nothing_else(tmp_path, capsys):
    config = pruning_limit.Config(dry_run=True, num_steps=64, output=tmp_path / "run")
    pruning_limit.main(config)
    said = capsys.readouterr().out
    assert "D = 877,010" in said
    # 48 Lanczos vectors and 24 rows for locked ones, in float32.
    assert f"{72 * 4 * 877_010 / 2**30:.3g} GiB" in said
    assert not (tmp_path / "run").exists()


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
        pruning_limit.main(pruning_limit.Config(dry_run=True, num_steps=64, **settings))
    default, changed = capsys.readouterr().out.split("fc5 on digits")[1:]
    assert default != changed


def test_dry_run_plans_for_the_devices_of_the_run(monkeypatch, capsys):
    """On a mesh the basis stays where the vectors are: bfloat16 and the host are not tried."""
    monkeypatch.setattr(planning.memory, "usable_memory", lambda: 0.42e9)
    config = pruning_limit.Config(dry_run=True, num_steps=64, num_probes=4)
    pruning_limit.main(config)
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    monkeypatch.setattr(pruning_limit.distributed, "all_devices", lambda: mesh)
    pruning_limit.main(config)
    alone, shared = capsys.readouterr().out.split("fc5 on digits")[1:]
    assert "basis in pinned_host" in alone
    assert "D = 877,010, on each of 8 devices" in shared
    assert "basis in device" in shared


def test_missing_data_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    config = pruning_limit.Config(dataset="cifar100", data_dir=tmp_path, output=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="cifar100"):
        pruning_limit.main(config)


@pytest.mark.slow
def test_default_predicts_what_pruning_then_finds(tmp_path):
    """FC5 on digits at its l1 minimum: the prediction is within 15 % of the measured limit."""
    pruning_limit.main(pruning_limit.Config(output=tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "seed-0" / "result.json").read_text())
    measured = result["measured"]["by_loss"]
    assert result["prediction"]["ratio"] == pytest.approx(measured, rel=0.15)
