"""What the experiment of pruning in one shot is told: its ratios and its batches."""

import json
import math
import sys
from pathlib import Path

import flax.linen as nn
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
pytest.importorskip("rich")
pytest.importorskip("tyro")

import lomp


class Small(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(10)(images.reshape(len(images), -1))


def test_fine_tuning_takes_the_batch_size_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr(lomp.pruning_limit.models, "create", lambda *_, **__: Small())
    settings = {"epochs": 1, "max_images": 32, "batch_size": 16, "finetune_epochs": 1}
    lomp.main(lomp.Config(ratios=(0.5,), output=tmp_path, **settings))
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
    monkeypatch.setattr(lomp.pruning_limit, "train", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match=says):
        lomp.main(lomp.Config(output=tmp_path, **settings))
