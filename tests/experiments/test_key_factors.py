"""The experiment on the key factors end to end, on a network small enough for every suite."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata

pytest.importorskip("rich")
pytest.importorskip("tyro")

import key_factors
from lab_results import made_up

from jaxlimit import datasets, flatten_weights, limits, pruning, spectrum
from jaxlimit.lab import report, results, runs
from jaxlimit.lab.settings import RunConfig


class Small(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(10)(nn.relu(nn.Dense(8)(images.reshape(len(images), -1))))


def analyse_fast(net, config, seed, folder, stages):
    """Stand in for the analysis, which takes most of the time: a known spectrum, a short sweep."""
    params = net.trained.params
    weights, _ = flatten_weights(params)
    epsilon = 0.1 + float(jnp.abs(weights).mean())
    measure = spectrum.exact_measure(jnp.linspace(0, jnp.linalg.norm(weights), weights.size))
    spectrum.save(folder / "spectrum.npz", measure, identity={"of": str(folder)})
    batches = datasets.to_batches(net.train)
    sweep = pruning.magnitude_sweep(net.loss, params, batches, [0.01, 0.05, 0.1, 1.0], {})
    limit = limits.pruning_limit(measure, params, epsilon)
    found = float(pruning.empirical_limit(sweep, sweep.losses[-1], epsilon))
    limit = results.Limit(**report.numbers(limit))
    curve = report.curve(sweep)
    result = made_up(
        config,
        seed,
        spectra={"of": str(folder)},
        dim=weights.size,
        epsilon=epsilon,
        eigenvalues=results.Eigenvalues(float(measure.nodes.max()), 0.0, 0.0),
        prediction=limit,
        clipped=limit,
        factors=results.Factors(**report.numbers(limits.key_factors(measure, params, epsilon))),
        measured=results.Measured(found, found, found),
        baseline=results.Baseline(float(pruning.support_fraction(params)), 0.0),
        dense=results.Dense(float(sweep.losses[-1]), 1.0),
        sweep=results.Sweep(curve, curve, curve),
    )
    return results.write_result(folder, result)


@pytest.fixture(scope="module", params=["fast", pytest.param("whole", marks=pytest.mark.slow)])
def output(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("key_factors")
    base = RunConfig(
        num_steps=12, num_gap_steps=2, hessian_images=256, num_ratios=13, find_mask=False
    )
    base = base.replace(epochs=4)
    config = key_factors.Config(
        base=base,
        learning_rate=(),
        batch_size=(),
        sam_radius=(0.5,),
        l2=(),
        l1=(3e-3, 3e-2),
        ratios=(0.1, 0.05),
        retrain_epochs=2,
        output=folder,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.models, "create", lambda *_, **__: Small())
        patch.setattr(report, "draw", lambda *_: None)
        if request.param == "fast":
            patch.setattr(runs, "analyse", analyse_fast)
        key_factors.main(config)
        first = json.loads((folder / "result.json").read_text())
        patch.setattr(runs, "analyse", pytest.fail)  # nothing is measured twice
        key_factors.main(config)
    return folder, first


def test_every_setting_is_measured_once(output):
    folder, first = output
    again = json.loads((folder / "result.json").read_text())
    assert first["rows"] == again["rows"]
    assert first["sentences"] == again["sentences"]
    assert [(r["factor"], r["value"]) for r in first["rows"]] == [
        ("base", None), ("sam_radius", 0.5), ("l1", 3e-3), ("l1", 3e-2),
    ]  # fmt: skip
    base, *others = first["rows"]
    assert base["common_epsilon"]["predicted"] == pytest.approx(base["predicted"], rel=1e-5)
    assert base["common_epsilon"]["measured"] == pytest.approx(base["measured"], rel=1e-5)
    assert others[-1]["norm"] < others[-2]["norm"] < base["norm"]
    assert all(row["absolute_trace"] > 0 for row in first["rows"])
    for name in ("factors", "rounds"):
        assert 10_000 < (folder / f"{name}.png").stat().st_size < 200_000


def test_rank_correlations_are_those_of_the_ranks(output):
    _, result = output
    column = lambda name: np.array([row[name] for row in result["rows"]])  # noqa: E731
    table = result["rank_correlations"]
    assert table["all"]["n"] == 4
    assert set(table) == {"all", "l1"}  # factors of more than one value
    traces, predicted = rankdata(column("absolute_trace")), rankdata(column("predicted"))
    expected = np.corrcoef(traces, predicted)[0, 1]
    assert table["all"]["predicted"]["absolute_trace"][0] == pytest.approx(expected)


def test_penalties_are_told_in_the_order_of_their_strength():
    def row(factor, value, norm, predicted, measured):
        numbers = {"norm": norm, "predicted": predicted, "measured": measured}
        return {"factor": factor, "value": value} | numbers

    rows = [
        row("base", None, 10.0, 0.02, 0.03),
        row("sam_radius", 0.1, 99.0, 0.99, 0.99),
        row("l2", 0.1, 8.0, 0.02, 0.05),
        row("l2", 0.2, 7.0, 0.01, 0.01),
        row("l1", 0.5, 5.0, 0.005, 0.006),
        row("l1", 0.001, 20.0, 0.3, 0.2),
    ]
    of_base = {"l1": 0.01, "l2": 0.0}
    assert key_factors.conclude_regularisation(rows, of_base) == (
        "With l1 from 0.001 to 0.5 ‖w‖ falls from 20 to 5, ρ* predicted falls from 30.000% to "
        "0.500% and measured falls from 20.000% to 0.600%. With l2 from 0 to 0.2 ‖w‖ falls from 10 "
        "to 7, ρ* predicted goes, not steadily, from 2.000% to 1.000% and measured goes, not "
        "steadily, from 3.000% to 1.000%."
    )
    assert key_factors.conclude_regularisation(rows[:2], of_base) == ""


def test_sentences_speak_of_the_penalties_that_were_varied(output):
    _, result = output
    (said,) = (sentence for sentence in result["sentences"] if sentence.startswith("With l1"))
    norms = [result["rows"][i]["norm"] for i in (0, -1)]
    assert f"from 0.0003 to 0.03 ‖w‖ falls from {norms[0]:.3g} to {norms[1]:.3g}" in said
    assert "l2" not in said


def test_rounds_start_from_the_base_network_and_remove_less_each(output):
    folder, result = output
    gradual, once = result["rounds"]["gradual"], result["rounds"]["one_shot"]
    base = json.loads((folder / "base" / "seed-0" / "result.json").read_text())
    sweep = base["sweep"]["loss"]
    swept = np.interp(0.1, sweep["ratios"], sweep["values"])
    for row in (gradual[0], once[0]):
        assert row["pruned"]["loss"] == pytest.approx(swept, rel=1e-4)
        assert row["retrained"]["loss"] < row["pruned"]["loss"]
    assert gradual[0]["retrained"] == once[0]["retrained"]  # as many epochs, from the same start
    assert gradual[1]["radius"] != once[1]["radius"]
    assert result["rounds"]["dense"]["loss"] == pytest.approx(base["dense"]["loss"], rel=1e-4)
    assert gradual[1]["after"]["support"] <= 0.05 + 1e-2
