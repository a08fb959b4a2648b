"""The experiments on the theory end to end at tiny size: what they write and what they say."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.linalg import eigh_tridiagonal

pytest.importorskip("rich")
pytest.importorskip("tyro")

import bound_gap
import depth
import ellipsoid_limit
import jax
import jax.numpy as jnp
import phase_transition
import sensitivity

from jaxlimit import geometry
from jaxlimit.lab.settings import RunConfig


@pytest.fixture(scope="module")
def gap(tmp_path_factory):
    """A comparison of the bounds on one network that is hardly trained, over in seconds."""
    base = RunConfig(
        max_images=256, num_steps=8, num_gap_steps=6, num_ratios=4, find_mask=False
    ).replace(epochs=1)
    config = bound_gap.Config(networks=("fc5",), base=base, output=tmp_path_factory.mktemp("gap"))
    bound_gap.main(config)
    return config


@pytest.fixture(scope="module")
def run(gap):
    """The folder of its run."""
    return gap.output / "fc5-digits" / "seed-0"


def read(folder, figure):
    assert 5_000 < (folder / f"{figure}.png").stat().st_size < 200_000
    return json.loads((folder / "result.json").read_text())


def test_ellipsoid_limit_tells_the_thresholds_apart(tmp_path):
    config = ellipsoid_limit.Config(
        dims=(96,), num_bases=24, tolerances=(0.01, 0.2), output=tmp_path
    )
    ellipsoid_limit.main(config)
    spectra = read(tmp_path, "ellipsoid_limit")["spectra"]
    for series in spectra.values():
        largest = series[-1]
        refitted, one_shot = (np.array(largest[x]["mean"]) for x in ("refitted", "one_shot"))
        assert (refitted <= one_shot).all()
        # Half a weight of rounding beside the spread over bases of the mean of 24.
        assert np.abs(largest["corrected"] - refitted).max() < 0.02
        assert largest["published"][-1] - refitted[-1] > 0.03
    # Where all directions are equal, refitting the kept weights gains nothing.
    equal = spectra["all equal"][-1]
    assert equal["refitted"] == equal["one_shot"]


@pytest.fixture(scope="module")
def transitions(tmp_path_factory):
    """The first hits of 40 rotations on each set, from the result file, by dimension."""
    output = tmp_path_factory.mktemp("transitions")
    config = phase_transition.Config(dims=(12, 24), num_rotations=40, output=output)
    phase_transition.main(config)
    sets = read(output, "phase_transition")["transitions"].items()
    return {title.split()[0].strip(","): series for title, series in sets}


def test_subspaces_start_to_hit_where_the_statistical_dimension_says(transitions):
    """E k lies in [D - δ, D - δ + 1] for a fixed cone: hits at k are V ≥ D-k+1 to V ≥ D-k."""
    assert list(transitions) == ["circular", "orthant", "l1", "ellipsoid"]
    for name, series in transitions.items():
        assert [at["dim"] for at in series] == [12, 24]
        for at in series:
            hits = np.array(at["first_hits"])
            assert len(hits) == 40
            assert at["mean"] == pytest.approx(hits.mean())
            error = 4 * hits.std() / 40**0.5
            center = at["predicted"]
            if name == "l1":  # its closed form is a bound, so that the cone itself is sampled
                signs = jnp.arange(at["dim"]) < {12: 2, 24: 3}[at["dim"]]  # an eighth
                center = at["dim"] - sampled_dimension(signs)
                assert at["predicted"] < center + 0.2
            slack = 1 if name == "ellipsoid" else 0  # seen anew at every rotation: O(1)
            assert center - slack - error <= hits.mean() <= center + 1 + error, name


def sampled_dimension(signs):
    project = geometry.l1_descent_cone_projection(signs.astype(float))
    sample = geometry.statistical_dimension(
        project, jax.random.key(0), dim=signs.size, num_samples=20_000
    )
    assert sample.standard_error < 0.05
    return float(sample.value)


def test_transitions_stay_in_their_bands_and_sharpen(transitions):
    by_chance = 0.05 + 4 * (0.05 * 0.95 / 40) ** 0.5
    for series in transitions.values():
        for at in series:
            hits, (low, high) = np.array(at["first_hits"]), at["band"]
            assert at["hits_below_band"] == pytest.approx(np.mean(hits <= int(low)))
            assert at["misses_above_band"] == pytest.approx(np.mean(hits > np.ceil(high)))
            assert max(at["hits_below_band"], at["misses_above_band"]) <= by_chance
    small, large = (np.mean([s[i]["width"] for s in transitions.values()]) for i in (0, 1))
    assert large < small


def test_depth_reads_every_run_at_the_radius_of_the_first(run, tmp_path):
    depth.main(depth.Config(runs=(run,), output=tmp_path))
    content = json.loads((tmp_path / "depth.json").read_text())
    result = json.loads((run / "result.json").read_text())
    (rows,) = content["series"].values()
    stored = np.load(run / "spectrum.npz")
    ridge = 2 * result["epsilon"] / result["prediction"]["radius"] ** 2
    for row in rows:
        diagonal = stored["diagonal"][0, : row["depth"]].astype(float)
        nodes, vectors = eigh_tridiagonal(diagonal, stored["off_diagonal"][0, : row["depth"] - 1])
        gauss = np.sum(vectors[0] ** 2 * np.abs(nodes) / (np.abs(nodes) + ridge))
        assert row["gauss"] == pytest.approx(gauss, rel=1e-4)
        assert row["lower"] <= row["value"] <= row["upper"]
    assert (tmp_path / "depth.png").stat().st_size > 5_000
    assert content["runs"] == {f"{result['hessian_images']} images": str(run)}
    assert content["config"]["runs"] == [str(run)]
    assert content["environment"]["jax"] == jax.__version__


def test_depth_refuses_runs_that_it_would_name_alike(run, tmp_path):
    with pytest.raises(ValueError, match="runs must differ in the images"):
        depth.main(depth.Config(runs=(run, run), output=tmp_path))


def test_bound_gap_repeats_the_figures_of_its_runs(gap, run):
    content = read(gap.output, "bound_gap")
    (row,) = content["rows"]
    result = json.loads((run / "result.json").read_text())
    assert row["gap"] == result["gap"]
    assert row["gap"] == pytest.approx(row["upper_bound"]["ratio"] - row["ratio"], abs=1e-6)
    assert "256 images" in row["name"]
    assert content["config"]["base"]["max_images"] == 256


def test_bound_gap_makes_no_run_twice(gap, run, capsys):
    made = (run / "result.json").stat().st_mtime_ns
    bound_gap.main(dataclasses.replace(gap, runs=(run,)))
    assert (run / "result.json").stat().st_mtime_ns == made
    assert capsys.readouterr().out.count("| fc5, digits") == 2


def test_bound_gap_wants_a_network(tmp_path):
    with pytest.raises(ValueError, match="networks"):
        bound_gap.main(bound_gap.Config(networks=(), output=tmp_path))


def test_sensitivity_turns_one_knob_at_a_time(run, tmp_path):
    config = sensitivity.Config(
        run=run, num_steps=6, depths=(4, 8, 1024), num_probes=1, samples=(300,), output=tmp_path
    )
    sensitivity.main(config)
    content = read(tmp_path, "sensitivity")
    knobs = content["knobs"]
    assert list(knobs["Lanczos depth"]) == ["4", "6", "8"]
    # More images than there are is the baseline once more, by products of its own.
    baseline = knobs["λ < 0"]["as |λ|"]["ratio"]
    assert knobs["Hessian images"]["300"]["ratio"] == pytest.approx(baseline, rel=1e-3)
    # ε goes with 1/√batch, and the limit falls with ε.
    by_batch = [knobs["ε from batches of"][size]["ratio"] for size in ("32", "128", "512")]
    assert by_batch == sorted(by_batch)
    assert by_batch[0] < by_batch[2]
    assert knobs["λ < 0"]["as 0"]["ratio"] <= baseline
    assert content["table"].count("baseline") == len(knobs)
