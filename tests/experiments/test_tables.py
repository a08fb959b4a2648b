"""The tables: rows read and checked, runs kept apart, numbers against the statistics module."""

import csv
import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from unittest.mock import MagicMock

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("tyro")

import lab_results
import tables

from jaxlimit import datasets
from jaxlimit.lab import forecast, paper_tables, report, results, rows, runs
from jaxlimit.lab.content import plain, write_json
from jaxlimit.lab.settings import RunConfig
from jaxlimit.pruning import SweepResult


def made_up(config, seed, *, theory=0.02, measured=0.01, **changes):
    """Make a result with numbers of our own."""
    limit = results.Limit(theory + 0.002 * seed, 0.01, 0.03, 0.0, 1, 1.0, 1.0)
    found = results.Measured(measured + 0.001 * seed**2, 0.01, 0.01)
    limits = {"prediction": limit, "clipped": limit, "corrected": limit, "measured": found}
    return lab_results.made_up(config, seed, **limits | changes)


@pytest.fixture
def runner(monkeypatch):
    """Stand in for the training and analysis, and note what was run."""
    ran = []

    def run(config, seed, folder):
        ran.append((config.model, config.training.l1, seed))
        if config.model == "fc12":
            raise FloatingPointError("the training loss stopped being finite in epoch 3")
        return results.write_result(folder, made_up(config, seed))

    monkeypatch.setattr(runs, "run", run)
    monkeypatch.setattr(report, "show", lambda result, folder: None)
    return ran


@pytest.fixture
def config(tmp_path):
    return tables.Config(
        rows=("fc",), seeds=(0, 1, 2), runs=tmp_path / "runs", results=tmp_path / "tables"
    )


def lines_of(folder):
    with (folder / "table.csv").open() as file:
        return {(line["network"], line["setting"]): line for line in csv.DictReader(file)}


@pytest.mark.parametrize("lists", [{"seeds": ()}, {"seeds": (0, 0)}, {"settings": ()}])
def test_lists_with_nothing_or_twice_the_same_are_refused(lists):
    with pytest.raises(ValueError, match=rf"{next(iter(lists))} must be distinct, at least one"):
        tables.Config(**lists)


def test_rows_are_those_of_the_paper_with_its_settings():
    by_name = {row.name: row for row in rows.read_rows(tables.ROWS)}
    assert list(by_name) == [
        "fc5-cifar10", "fc12-cifar10", "alexnet-cifar10", "vgg16-cifar10",
        "resnet18-cifar100", "resnet50-cifar100",
        "resnet18-tiny_imagenet-half", "resnet50-tiny_imagenet-half", "vit-cifar10",
    ]  # fmt: skip
    assert not by_name.pop("vit-cifar10").published
    trained = {
        "fc5": (0.01, "constant", 0, 5e-5),
        "fc12": (0.01, "constant", 0, 5e-5),
        "alexnet": (0.01, "multi-step", 0, 3e-5),
        "vgg16": (0.01, "constant", 0, 1e-4),
        "resnet18": (0.1, "cosine", 5, 5e-5),
        "resnet50": (0.1, "cosine", 5, 2e-5),
    }
    for row in by_name.values():
        c = row.config("paper", 0)
        t = c.training
        assert (t.learning_rate, t.schedule, t.warmup_epochs, t.l1) == trained[c.model]
        assert row.name == f"{c.model}-{c.dataset}".replace("/", "-")
        assert (t.epochs, t.batch_size, row.common["batch_size"]) == (200, 128, 128)
        assert row.config("annealed", 1).training.schedule == "cosine"
        assert row.config("smoke", 0).max_images <= 256
        assert set(row.published) == {"theory", "measured", "gap"}
    assert by_name["fc5-cifar10"].config("paper", 0).num_steps > 256
    assert by_name["fc5-cifar10"].config("paper", 1).num_steps == 256
    assert rows.select(list(by_name.values()), ("resnet18",)) == [
        by_name["resnet18-cifar100"], by_name["resnet18-tiny_imagenet-half"],
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"one of fc5-cifar10.*got 'resnet81'"):
        rows.select(list(by_name.values()), ("fc5", "resnet81"))


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ("l1 = 2e-4", "l_1 = 2e-4", ValueError, "annealed: unknown setting 'l_1', did you mean"),
        ("l1 = 2e-4", 'l1 = "2e-4"', TypeError, "annealed: l1 must be float, got '2e-4'"),
        ('"cosine"', '"cosin"', TypeError, "schedule must be .*cosine.*, got 'cosin'"),
        ("learning_rate = 0.05", "learning_rate = -1", ValueError, "learning_rate"),
        ("[smoke]", "[smok]", ValueError, r"unknown setting \[smok\], did you mean \[smoke\]"),
        ("place = 1", "place 1", ValueError, "Expected '='"),
        ('"fc5"', '"fc55"', ValueError, "fc55.*fc5"),
        ("num_steps = 256", "num_steps = -3", ValueError, "num_steps must be at least 1, got -3"),
        ("seed-0 = {", "seed-7 = { num_step = 1,", ValueError, "unknown setting 'num_step'"),
    ],
)
def test_a_wrong_row_file_is_refused(tmp_path, old, new, error, says):
    text = (tables.ROWS / "fc5-cifar10.toml").read_text()
    assert old in text
    path = tmp_path / "fc5-cifar10.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(error, match=f"(?s){says}.*\nin {path}"):
        rows.read_row(path)


def test_one_failure_loses_no_other_run_and_nothing_is_run_twice(config, runner, capsys):
    config = dataclasses.replace(config, settings=("paper",))
    with pytest.raises(SystemExit, match="3 of 6 runs failed:\nfc12-cifar10, paper, seed 0: Flo"):
        tables.main(config)
    assert len(runner) == 6
    lines = lines_of(config.results)
    assert lines["fc12-cifar10", "paper"]["results"] == "not run yet"
    line = lines["fc5-cifar10", "paper"]
    theory, measured = [2.0, 2.2, 2.4], [1.0, 1.1, 1.4]
    for name, values in (("theory", theory), ("measured", measured)):
        assert float(line[f"{name}, mean"]) == pytest.approx(statistics.mean(values), rel=1e-5)
        assert float(line[f"{name}, std"]) == pytest.approx(statistics.stdev(values), rel=1e-5)
    assert (line["theory, paper, mean"], line["theory, paper, std"]) == ("2.1", "0.25")
    for path in line["results"].split():
        assert json.loads((config.results / path).read_text())["config"]["model"] == "fc5"
    text = (config.results / "table.md").read_text()
    row = next(t for t in text.splitlines() if t.startswith("| fc5-cifar10 | paper"))
    for part in (
        "2.1 ± 0.25",
        "2.2 ± 0.2",
        "1.7 ± 0.12",
        "1.17 ± 0.21",
        "+1 (1.89 times)",
        "seed-2/result",
    ):
        assert part in row
    assert "theory between 1 and 3, Lanczos depth 128" in text
    assert "the moon was full" in text
    assert 20_000 < (config.results / "table.png").stat().st_size < 200_000
    assert 10_000 < (config.results / "training.png").stat().st_size < 200_000
    kept = json.loads((config.results / line["results"].split()[0]).read_text())["training"]
    assert len(kept["loss"]) == 40
    assert (kept["epoch"][0], kept["epoch"][-1]) == (1, 99)

    runner.clear()
    tables.main(dataclasses.replace(config, rows=("fc5",)))
    assert not runner
    assert capsys.readouterr().out.count("is there already") == 3


def job(config, row, setting, seed):
    chosen = dataclasses.replace(config, settings=(setting,), seeds=(seed,))
    (found,) = tables.jobs_of([row], chosen)
    return found


def test_the_committed_runs_are_those_of_their_rows(config, runner, capsys):
    """A result that is kept beside the tables is not run again."""
    config = dataclasses.replace(config, results=tables.Config().results)
    kept = list(config.results.rglob("result.json"))
    for row in rows.read_rows(tables.ROWS):
        for setting in row.settings:
            for folder in (config.results / f"{row.name}-{setting}").glob("seed-*"):
                seed = int(folder.name.removeprefix("seed-"))
                tables.run(job(config, row, setting, seed), config)
    assert not runner
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is there already") == len(kept) > 0


@pytest.mark.parametrize("lacking", [{}, {"config": {}}, {"config": {"no_flag": 1}}])
def test_a_run_without_its_settings_is_done_again(config, runner, lacking):
    write_json(config.runs / "fc5-cifar10-paper" / "seed-0" / "result.json", lacking)
    tables.run(job(config, rows.read_rows(tables.ROWS)[0], "paper", 0), config)
    assert len(runner) == 1


def test_nothing_starts_unasked(config, runner, capsys, monkeypatch):
    """Without arguments it says what would run, for how long, and what is there."""
    monkeypatch.setattr(forecast, "_flops", lambda *_: (1e9, 3e9, 6e9))  # traces nine networks
    monkeypatch.setattr(paper_tables.plotting, "save", lambda *_: None)  # draws after every run
    row = rows.read_rows(tables.ROWS)[0]
    there = made_up(row.config("paper", 0), 0, seconds={"total": 7200.0})
    results.write_result(config.runs / "fc5-cifar10-paper" / "seed-0", there)
    tables.main(dataclasses.replace(config, rows=(), seeds=(0,)))
    said = capsys.readouterr().out
    assert not runner
    assert not config.results.exists()
    lines = {line.split(" | ")[0]: line for line in said.splitlines() if line.startswith("| ")}
    assert lines["| fc5-cifar10, paper, seed 0"].endswith("| done, in 2 h |")
    assert lines["| vgg16-cifar10, annealed, seed 0"].endswith("| nothing |")
    assert "Nothing was started" in said
    everything = dataclasses.replace(config, rows=(), run=True, settings=("smoke",), seeds=(0,))
    with pytest.raises(SystemExit, match="1 of 9 runs failed"):
        tables.main(everything)
    assert len(runner) == len(rows.read_rows(tables.ROWS))


def test_a_forecast_counts_what_a_run_multiplies():
    """Of FC5 on digits by hand: 2 operations a weight forward, three times that for a gradient."""
    config = RunConfig(num_steps=64, num_gap_steps=16, num_ratios=10).replace(epochs=2)
    widths = [64, 1000, 600, 300, 100, 10]
    layers = [2 * a * b for a, b in itertools.pairwise(widths)]
    forward, first = sum(layers), layers[0]
    found = forecast.forecast(config, rate=1e9)
    assert found.training == pytest.approx(2 * 1437 * (3 * forward - first) / 1e9)
    assert found.spectrum == pytest.approx(90 * 1437 * (6 * forward - 4 * first) / 1e9)
    assert found.sweep == pytest.approx((20 * 1437 + 10 * 360) * forward / 1e9)
    assert found.total == pytest.approx(sum(found))


def test_a_short_row_takes_three_hours_at_most_by_its_forecast():
    rate = forecast.EFFICIENCY * 2 * 230e9  # of the two cores that the rows are planned for
    planned = [row for row in rows.read_rows(tables.ROWS) if "short" in row.settings]
    assert {row.common["model"] for row in planned} == {*forecast.CONVOLUTIONAL, "vit"}
    for row in planned:
        assert forecast.forecast(row.config("short", 0), rate).total < 3 * 3600, row.name


def test_a_forecast_knows_images_of_each_class_and_convolutions():
    config = RunConfig("resnet18", "cifar100", num_ratios=4).replace(epochs=3)
    few = forecast.forecast(dataclasses.replace(config, images_per_class=50), 1e9)
    assert few.training * 10 == pytest.approx(forecast.forecast(config, 1e9).training)
    flops = forecast._flops("resnet18", (32, 32, 3), 100)[1]
    assert few.training == pytest.approx(3 * 5000 * flops / (forecast.CONVOLVED * 1e9))


def test_the_first_images_of_each_class_keep_their_order(monkeypatch):
    labels = np.array([2, 0, 2, 2, 0, 1], np.int32)
    whole = datasets.Dataset(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), labels, 3)
    monkeypatch.setattr(datasets, "load", lambda *_: whole)
    some = runs.training_images(RunConfig(images_per_class=2, max_images=4))
    assert some.images.ravel().tolist() == [0, 1, 2, 4]
    assert some.labels.tolist() == [2, 0, 2, 0]
    assert runs.training_images(RunConfig()).labels.tolist() == labels.tolist()
    names = [RunConfig(images_per_class=n).name() for n in (None, 2, 3)]
    assert len({*names}) == 3
    with pytest.raises(ValueError, match="images_per_class must be at least 1, got 0"):
        RunConfig(images_per_class=0)


def test_the_overview_has_one_line_a_network():
    lines = paper_tables.overview(
        [
            paper_tables.Cell(row, setting, made, [])
            for row in rows.read_rows(tables.ROWS)
            for setting in row.settings
            if setting != "smoke"
            for made in [[made_up(row.config(setting, 0), 0)] if setting == "short" else []]
        ]
    ).splitlines()
    assert lines[0] == "| network | published | short | annealed | paper |"
    assert len(lines) == 2 + len(rows.read_rows(tables.ROWS))
    vgg16 = "0.8 ± 0.06 / 0.8 ± 0.08 | 2 [1, 3] / 1 | not run yet | not run yet |"
    assert f"| vgg16-cifar10 | {vgg16}" in lines
    assert "| vit-cifar10 | not in the paper | 2 [1, 3] / 1 | not run yet | - |" in lines


def test_what_is_kept_names_no_folder_of_data():
    made = made_up(rows.read_rows(tables.ROWS)[0].config("paper", 0, data_dir=Path("/data")), 0)
    assert made.config.data_dir == Path("/data")
    assert made.thinned().config == made.config.replace(data_dir=None)


def test_results_of_another_setting_are_left_out(config, capsys):
    row = rows.read_rows(tables.ROWS)[0]
    for seed, more in ((0, {"num_steps": 17}), (1, {"l1": 1.0}), (2, {"max_images": 99})):
        made = plain(made_up(row.config("paper", seed, **more), seed))
        made["config"].pop("training_dtype")  # as an older result, which lacks a newer setting
        made["config"] |= made["config"].pop("training")
        made["schema"] = 1
        write_json(config.runs / "fc5-cifar10-paper" / f"seed-{seed}" / "result.json", made)
    torn = config.runs / "fc5-cifar10-annealed" / "seed-0" / "result.json"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"seed": 0, "conf')
    tables.main(dataclasses.replace(config, collect=True))
    kept = list(config.results.glob("*/*/result.json"))
    assert [path.parent.name for path in kept] == ["seed-0"]
    said = " ".join(capsys.readouterr().out.split())
    assert "l1 1.0, not 5e-05" in said
    assert "max_images 99, not None" in said
    assert "Unterminated string" in said
    sweep = json.loads(kept[0].read_text())["sweep"]["loss"]
    assert (len(sweep["ratios"]), sweep["ratios"][0], sweep["ratios"][-1]) == (40, 0.01, 2.0)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("hessian_images", 16, False),
        ("smallest_ratio", 0.1, False),
        ("accuracy_tolerance", 0.5, False),
        ("num_steps", 4, True),
        ("num_gap_steps", 4, True),
        ("tolerance", 0.0, True),
    ],
)
def test_a_result_may_be_of_another_depth_but_not_of_another_limit(config, name, value, kept):
    row = rows.read_rows(tables.ROWS)[0]
    made = made_up(row.config("paper", 1, **{name: value}), 1)
    write_json(config.runs / "fc5-cifar10-paper" / "seed-1" / "result.json", made)
    paper_tables.collect(row, config.runs, config.results)
    assert any(config.results.rglob("result.json")) == kept


def test_collected_results_of_an_older_setting_are_left_out(config, capsys):
    row = rows.read_rows(tables.ROWS)[0]
    for seed, more in ((0, {"l1": 1.0, "epochs": 3}), (1, {})):
        made = made_up(row.config("annealed", seed, **more), seed)
        write_json(config.results / "fc5-cifar10-annealed" / f"seed-{seed}" / "result.json", made)
    tables.main(dataclasses.replace(config, collect=True))
    line = lines_of(config.results)["fc5-cifar10", "annealed"]
    assert line["results"] == "fc5-cifar10-annealed/seed-1/result.json"
    said = "".join(capsys.readouterr().out.split())
    assert f"leftout{config.results}/fc5-cifar10-annealed/seed-0/result.json:" in said
    assert "epochs3,not200;l11.0,not0.0002" in said


def test_a_result_without_numbers_costs_no_other_its_place(config, capsys):
    row, nan = rows.read_rows(tables.ROWS)[0], float("nan")
    folder = config.runs / "fc5-cifar10-paper"
    lost = results.Limit(nan, nan, nan, nan, 0, nan, nan)
    made = [plain(made_up(row.config("paper", 0), 0)),
            plain(made_up(row.config("paper", 1), 1, prediction=lost)),
            plain(made_up(row.config("paper", 2), 2)), {}]  # fmt: skip
    made[2].pop("corrected")  # as an older result
    for name in ("sweep", "depth", "seconds", "reasons"):
        made.append(plain(made_up(row.config("paper", len(made)), len(made))))
        made[-1].pop(name)
    made.append(made_up(row.config("paper", 8, num_ratios=4), 8))
    for seed, result in enumerate(made):
        write_json(folder / f"seed-{seed}" / "result.json", result)
    tables.main(dataclasses.replace(config, collect=True))
    line = lines_of(config.results)["fc5-cifar10", "paper"]
    assert (line["seeds"], line["theory, mean"], line["measured, mean"]) == ("2", "nan", "1.05")
    text = (config.results / "table.md").read_text()
    assert "seed 0 (theory between 1 and 3," in text
    assert "seed 1 (theory between nan and nan," in text
    said = "".join(capsys.readouterr().out.split())
    assert "seed-2/result.json:Objectmissingrequiredfield`corrected`" in said
    for seed in range(3, 8):
        assert f"leftout{folder}/seed-{seed}/result.json:ValueError:" in said
    assert "seed-8/result.json:ValueError:madewithanothersetting:num_ratios4,not200" in said


def test_committed_tables_come_from_the_committed_results(tmp_path):
    committed = tables.Config().results
    config = tables.Config(results=tmp_path / "tables", runs=committed)
    paper_tables.tabulate(rows.read_rows(tables.ROWS), config.runs, config.results)
    for name in ("table.md", "table.csv"):
        assert (tmp_path / "tables" / name).read_text() == (committed / name).read_text()


def test_only_the_first_process_writes_once_all_have_come(config, runner, monkeypatch):
    came = []
    monkeypatch.setattr(paper_tables.distributed, "barrier", came.append)
    monkeypatch.setattr(paper_tables.distributed, "is_first", lambda: False)
    config = dataclasses.replace(config, rows=("fc5",), settings=("paper",), distributed=True)
    tables.main(config)
    assert len(runner) == 3
    assert len(came) == 4  # after each run, and at the end
    assert not config.results.exists()
    # Alone again, the runs are the same ones.
    monkeypatch.setattr(paper_tables.distributed, "is_first", lambda: True)
    runner.clear()
    tables.main(dataclasses.replace(config, distributed=False))
    assert not runner
    assert lines_of(config.results)["fc5-cifar10", "paper"]["seeds"] == "3"


def test_a_failure_ends_a_job_of_several_processes(config, runner):
    config = dataclasses.replace(config, settings=("paper",), distributed=True)
    with pytest.raises(FloatingPointError, match="epoch 3"):
        tables.main(config)
    assert runner[-1][0] == "fc12"
    assert len(runner) == 4


@pytest.mark.parametrize(
    ("losses", "accuracies", "where", "limit"),
    [
        ([0.9, 0.6, 0.5, 0.5], [0.1, 0.7, 0.8, 0.8], None, None),
        ([0.5, 0.4, 0.6, 0.5], [0.8, 0.9, 0.8, 0.8], "every ratio of the sweep passes",
         "at most 0.01 %"),
        ([0.5, 0.9, 0.9, 0.5], [0.8, 0.1, 0.1, 0.8], "the least pruned network of the sweep fails",
         "1"),
    ],
)  # fmt: skip
def test_a_limit_at_an_end_of_its_sweep_is_told(losses, accuracies, where, limit):
    ratios = jnp.array([1e-4, 0.01, 0.1, 1.0])
    loss, accuracy = (
        SweepResult(ratios, jnp.array(values), *[0 * ratios] * 3) for values in (losses, accuracies)
    )
    estimate = MagicMock(epsilon=0.1, reasons=())
    estimate.prediction.ratio = 0.5
    findings, config = report.Findings(estimate, loss, loss, accuracy), RunConfig()
    measured = report.limits_found(findings, config)
    baseline = results.Baseline(1.0, 0.0)
    net = MagicMock()
    net.train.labels = range(10)
    reasons = report.reasons(net, findings, config, measured, baseline)
    said = [reason for reason in reasons if "measured limit" in reason]
    names = ("loss", "accuracy") if where else ()
    assert said == [f"{where} by {name}: the measured limit is {limit}" for name in names]
