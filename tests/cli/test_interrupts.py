"""Ctrl-C and SIGTERM in the middle of every stage, in this process: how it ends, and goes on."""

import contextlib
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import Task, limits, reports
from jaxlimit.cli import actions, main
from jaxlimit.cli.main import _terminate
from jaxlimit.lab import report as lab_report
from jaxlimit.lab.console import Stages
from jaxlimit.studies import stages
from jaxlimit.studies.display import Display

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, and the command's own answer to SIGTERM."""
    monkeypatch.chdir(tmp_path)
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    yield tmp_path
    for number, handler in kept.items():
        signal.signal(number, handler)


class Sender:
    """Sends a signal to this process at the place it waits for, once."""

    def __init__(self, monkeypatch):
        self.waits_for, self.number, self.places, self.sent = None, None, [], False
        self.patch = monkeypatch

    def pass_by(self, place):
        if place not in self.places:
            self.places.append(place)
        if place == self.waits_for:
            self.waits_for, self.sent = None, True
            signal.raise_signal(self.number)

    def watch(self, home, name, place):
        """Pass by when a function is called."""
        function = getattr(home, name)

        def called(*args, **kwargs):
            self.pass_by(place)
            return function(*args, **kwargs)

        self.patch.setattr(home, name, called)

    def watch_bars(self, home):
        """Pass by when a bar is drawn."""
        show = home.show

        def shown(display, name, done, total):
            self.pass_by(name)
            return show(display, name, done, total)

        self.patch.setattr(home, "show", shown)

    def interrupts(self, arguments, place, number, capsys):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _terminate)
        self.waits_for, self.number, self.sent = place, number, False
        capsys.readouterr()
        assert main(arguments) == SIGNALS[number], place
        assert self.sent
        said = capsys.readouterr().err
        assert "Traceback" not in said
        word = {signal.SIGINT: "\ninterrupted", signal.SIGTERM: "\nterminated"}[number]
        lines = said[said.index(word) :].split("\n")[1:]  # below the numbers found by then
        assert lines[1:] == ["jaxlimit " + " ".join(arguments), ""]


def small_task():
    """A loss of one piece, so that certificate and mask are stages apart."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    x = normal(2, 24, 4)
    params = {"a": {"kernel": normal(4, 3)}, "b": {"kernel": normal(3, 1)}}

    def outputs(p, batch):
        return jnp.tanh(batch[0] @ p["a"]["kernel"]) @ p["b"]["kernel"]

    y = outputs(params, (x,)) + 0.1 * normal(2, 24, 1)

    def loss(p, batch):
        return jnp.mean((outputs(p, batch) - batch[1]) ** 2)

    def accuracy(p, batch):
        return jnp.mean((outputs(p, batch) - batch[1]) ** 2 < 0.1)

    return Task(loss, params, (x, y), held_out=(x, y), accuracy=accuracy)


STUDY = ["study", "small.py:task", "--num-steps", "12", "--num-gap-steps", "4",
         "--num-layer-steps", "4", "--num-ratios", "24", "--num-held-out", "4",
         "--accuracy-tolerance", "0.2", "--tolerance", "0"]  # fmt: skip
IN_A_STUDY = (
    "epsilon", "magnitude", "accuracy", "smallest mask", "held-out", "spectrum",
    "removed weights", "certificate", "at ρ*", "layers", "report", "figures",
)  # fmt: skip


def outcome(folder):
    passed = ("about", "seconds", "digest", "speed")
    result = json.loads((folder / "result.json").read_text())
    tensors = {path.name: path.read_bytes() for path in folder.glob("mask_*.safetensors")}
    return {name: value for name, value in result.items() if name not in passed}, {
        name: content[content.index(b"}") :] for name, content in tensors.items()
    }


def test_a_study_goes_on_after_either_signal_in_every_stage(here, capsys, monkeypatch):
    task = small_task()
    monkeypatch.setattr(actions, "find_task", lambda name: task)
    sender = Sender(monkeypatch)
    sender.watch(limits, "loss_tolerance", "epsilon")
    sender.watch(stages, "at_prediction", "at ρ*")
    sender.watch(reports.files, "_write_tensors", "report")
    sender.watch(reports.files, "_write_figure", "figures")
    sender.watch_bars(Display)
    assert main([*STUDY, "--output", "whole"]) == 0
    assert set(IN_A_STUDY) - set(sender.places) == set()
    for place in IN_A_STUDY:
        for number in SIGNALS:
            sender.interrupts(STUDY, place, number, capsys)
    assert main(STUDY) == 0
    assert outcome(here / "runs" / "small-task") == outcome(here / "whole")
    assert not list(here.rglob(".*.tmp"))


RUN = ["run", "--model", "fc3", "--epochs", "3", "--max-images", "128", "--num-steps", "4",
       "--num-gap-steps", "2", "--num-ratios", "4", "--checkpoint-every", "2"]  # fmt: skip
IN_A_RUN = (
    "training", "epsilon", "spectrum", "removed weights", "taylor", "sweep, loss",
    "sweep, accuracy", "smallest mask", "layers", "report",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_after_either_signal_in_every_stage(here, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    sender = Sender(monkeypatch)
    sender.watch_bars(Stages)
    sender.watch(lab_report, "draw", "report")
    time = Stages.time

    @contextlib.contextmanager
    def timed(stages, name):
        with time(stages, name):
            yield
            sender.pass_by(name)

    monkeypatch.setattr(Stages, "time", timed)
    assert main([*RUN, "--output", "whole"]) == 0
    assert set(IN_A_RUN) - set(sender.places) == set()
    for place in IN_A_RUN:
        for number in SIGNALS:
            sender.interrupts([*RUN, "--output", "halting"], place, number, capsys)
    assert main([*RUN, "--output", "halting"]) == 0
    assert run_outcome(here / "halting" / "seed-0") == run_outcome(here / "whole" / "seed-0")
    assert not list(here.rglob(".*.tmp"))


def run_outcome(folder):
    """Return all numbers of a run but those of time."""
    passed = ("seconds", "speed", "digest", "environment", "command")

    def kept(value):
        if isinstance(value, dict):
            return {name: kept(part) for name, part in value.items() if name not in passed}
        return [kept(part) for part in value] if isinstance(value, list) else value

    spectra = {file.name: np.load(file) for file in folder.glob("*.npz")}
    arrays = {
        (name, key): array[key].tobytes()
        for name, array in spectra.items()
        for key in array.files
        if array[key].dtype.kind == "f"
    }
    return kept(json.loads((folder / "result.json").read_text())), arrays


def test_a_second_signal_while_the_first_is_told_is_ignored(here, monkeypatch):
    task = small_task()
    monkeypatch.setattr(actions, "find_task", lambda name: task)
    sender = Sender(monkeypatch)
    sender.watch(limits, "loss_tolerance", "epsilon")

    told = []

    class Errors:
        def write(self, text):
            if "interrupted" in text:
                told.append(text)
                signal.raise_signal(signal.SIGTERM)
            return len(text)

        def flush(self):
            pass

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    sender.waits_for, sender.number = "epsilon", signal.SIGINT
    with contextlib.redirect_stderr(Errors()):
        assert main([*STUDY, "--quiet"]) == 130
    assert told
