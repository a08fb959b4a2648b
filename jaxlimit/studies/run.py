"""The whole study in one call: cheap stages first, each saved as soon as it is done."""

import contextlib
import dataclasses
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, Unpack

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

import jaxlimit
from jaxlimit import curvature, spectrum
from jaxlimit._core.batches import first_batch
from jaxlimit._core.checks import check_key, check_keywords, check_known, check_type
from jaxlimit._core.digests import fingerprint
from jaxlimit._core.locks import made_and_held
from jaxlimit._core.origin import program_digest
from jaxlimit._core.weights import Where, flatten_weights, is_weight, selected
from jaxlimit.studies import findings, stages, unseen
from jaxlimit.studies.data import HostBatches, count_examples
from jaxlimit.studies.display import Display
from jaxlimit.studies.problem import Problem
from jaxlimit.studies.result import Study
from jaxlimit.studies.settings import Budget, StudySettings, as_budget
from jaxlimit.studies.store import Store
from jaxlimit.studies.task import Task, check_task


class _SpentError(Exception):
    """The budget of seconds ran out in the middle of a stage."""


class StudyOptions(TypedDict, total=False):
    """Keyword options of `study`: how far it goes, where it is kept, and on which devices.

    Attributes:
        budget: seconds, or a `Budget` of seconds and products. Stages that do not fit are left out
            and named in `missing`.
        folder: a folder for finished stages and checkpoints of the spectrum, from which the same
            study continues later.
        mesh: devices that share the training examples and the vectors of the spectrum, a
            `jax.sharding.Mesh` over devices of this process. A study may continue on another one.
    """

    budget: Any
    folder: str | os.PathLike | None
    mesh: Mesh | None


def study(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    key: PRNGKeyArray,
    held_out: Any = None,
    accuracy: Callable | None = None,
    where: Where = is_weight,
    settings: StudySettings | None = None,
    **options: Unpack[StudyOptions],
) -> Study:
    """Find out from both sides how far a trained network can be pruned.

    Runs, the cheap stages first: ε and the magnitude sweep, the smallest mask with its certificate,
    the spectrum of the Hessian with the published prediction ρ*, the layers, and a guarantee on
    held-out data. Costs about 100 evaluations of the data for the sweep and, by default, up to 584
    Hessian products for the rest.

    Args:
        loss: `loss(params, batch, *operands)`, the mean data loss over the batch's examples in
            evaluation mode, without penalties.
        params: the trained parameters, a pytree of real floating arrays, such as the `params` of
            a checkpoint.
        batches: leaves [num_batches, batch, ...], a list of batches, or a loader that can be
            iterated over repeatedly.
        *operands: passed on to `loss` and `accuracy`, such as BatchNorm statistics.
        key: random key.
        held_out: examples not used in training, in any form of `batches`.
        accuracy: `accuracy(params, batch, *operands)`, the share of a batch that is right; for the
            limit by accuracy and for the guarantee.
        where: which leaves are weights under study.
        settings: a `StudySettings`.
        **options: see `StudyOptions`.

    Returns:
        A `Study`; print it, or `.save(folder)` its report.

    Raises:
        TypeError: for arguments of a wrong type, such as a generator for `batches`, or an unknown
            option; names the nearest.
        ValueError: for empty data, parameters that are not finite, or a loss that is not
            deterministic.
        InUseError: if another process is using `folder`.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.random.normal(jax.random.key(1), (1, 64, 8)) * jnp.array([9.0, 9.0] + 6 * [0.01])
    >>> loss = lambda w, batch: 0.5 * jnp.mean((batch @ (w - jnp.arange(8.0))) ** 2)
    >>> result = study(loss, jnp.arange(8.0), x, key=jax.random.key(0),
    ...                budget=0.0, settings=StudySettings(epsilon=0.1, quiet=True))
    >>> round(8 * result.measured.by_loss)  # all but the weight that is 0
    7
    """
    check_keywords("study", options, [*StudyOptions.__annotations__, "settings"])
    mesh, budget, folder = (options.get(name) for name in ("mesh", "budget", "folder"))
    task = Task(loss, params, batches, operands, held_out, accuracy, where, mesh=mesh)
    return study_task(task, key=key, budget=budget, folder=folder, settings=settings)


def study_task(
    task: Task,
    *,
    key: PRNGKeyArray,
    budget: Any = None,
    folder: str | os.PathLike | None = None,
    settings: StudySettings | None = None,
    command: str | None = None,
) -> Study:
    """Study a `Task`, as `study` does.

    Args:
        task: the network with its loss and data.
        key: as `study`.
        budget: as `study`.
        folder: as `study`.
        settings: as `study`.
        command: the command to name in the report; by default that of this process.

    Returns:
        A `Study`.

    Raises:
        TypeError: as `study`, and if `task` is no `Task`.
        ValueError: as `study`.
        InUseError: as `study`.
    """
    check_key("key", key)
    check_known("study", key=key, params=getattr(task, "params", None))
    settings = StudySettings() if settings is None else settings
    check_type("settings", settings, StudySettings)
    task = check_task(task)
    alone = contextlib.nullcontext() if folder is None else made_and_held(folder)
    with alone, Display(quiet=settings.quiet) as display:
        runner = _Runner(task, key, settings, as_budget(budget), folder, display)
        return runner.run(about(task, command))


class _Runner:
    """Runs the stages in turn, as far as the budget allows."""

    def __init__(self, task, key, settings, budget: Budget, folder, display) -> None:
        self.began, self.budget, self.display = time.monotonic(), budget, display
        self.products, self.seconds, self.missing = 0.0, {}, []
        self.can_stop = False
        identity = fingerprint(
            task.params, _plain(task.batches), task.operands, _plain(task.held_out),
            jax.random.key_data(key),
            repr(dataclasses.replace(settings, quiet=False)), selected(task.params, task.where),
            *_programs(task),
        )  # fmt: skip
        self.store = Store(folder, identity)
        self.problem = Problem(task, key, settings, self._on_progress)

    def run(self, about: dict[str, Any]) -> Study:
        """Run what fits, and collect it."""
        p = self.problem
        done = self.stage("magnitude", findings.Measured, lambda: stages.measure(p))
        self.display.say(f"magnitude, measured: {done.by_loss:.3%} of the weights are needed")
        self.can_stop = True
        found, certified = self.search(done)
        safe = self.held_out(done, found)
        layers = self.stage("layers", findings.Layers, lambda: stages.kept_by_layer(p, done, found))
        estimate, at = self.spectrum(done), None
        if not self.is_split:
            certified = self.certify(done, found, estimate)
        if estimate is not None:
            self.display.say(f"predicted ρ*: {float(estimate.prediction.ratio):.3%}")
            at = self.stage(
                "prediction", findings.AtPrediction, lambda: stages.at_prediction(p, estimate)
            )
        asked, wanted = None, len(layers.names) * p.settings.num_layer_steps if layers else 0
        if wanted:
            asked = self.stage(
                "limits by layer",
                findings.LayerLimits,
                lambda: stages.limits_by_layer(p, done),
                products=wanted,
            )
        return Study(
            p.task, p.settings, done, found, certified, estimate, at, layers, asked, safe,
            tuple(self.missing), self.seconds, about,
        )  # fmt: skip

    def stage(self, name: str, kind: Any, make: Callable, products: float = 0.0) -> Any:
        """Return a stage's result: the saved one, a new one, or None if the budget is too small."""
        kept = self.store.load(name, kind)
        if kept is None:
            if not self._fits(name, products):
                return None
            began = time.monotonic()
            try:
                with self.display.stage(name):
                    result = make()
            except _SpentError:
                self.missing.append(f"{name} (the budget of {self.budget.seconds:g} s is spent)")
                return None
            kept = result, time.monotonic() - began
            self.store.save(name, *kept)
        self.products += products
        result, self.seconds[name] = kept
        return result

    def search(self, done: findings.Measured) -> tuple[Any, Any]:
        """Return the mask found and the certificate, which come from one search."""
        both: dict[str, Any] = {}

        def make() -> findings.Found:
            both["found"], both["certified"] = stages.search(self.problem, done)
            if both["certified"] is not None:
                self.store.save("certificate", both["certified"], 0.0)
            return both["found"]

        wanted = self.problem.settings.certificate_products if self.is_split else 0
        found = self.stage("mask", findings.Found, make, products=wanted)
        if found is None:
            return None, None
        kept = self.store.load("certificate", findings.Certified)
        certified = both.get("certified", kept and kept[0])
        share = found.num_kept / done.dim
        self.display.say(f"smallest mask found: {share:.3%} ({found.method})")
        self._say_certified(done, certified)
        return found, certified

    def certify(self, done: Any, found: Any, estimate: Any) -> Any:
        """Return the certificate of a loss that is not split, from the Hessian and its spectrum."""
        p = self.problem
        if estimate is None:
            self.missing.append(
                "certificate (the loss is not split, so it needs the spectrum: or use "
                "curvature.split_loss)"
            )
            return None
        wanted = p.settings.certificate_products
        try:
            certified = self.stage(
                "certificate",
                findings.Certified,
                lambda: stages.certify(p, done, found, estimate),
                products=wanted,
            )
        except ValueError as error:
            self.missing.append(f"certificate ({error})")
            return None
        self._say_certified(done, certified)
        return certified

    @property
    def is_split(self) -> bool:
        """Whether the loss has a Gauss-Newton matrix."""
        return isinstance(self.problem.task.loss, curvature.Split)

    def _say_certified(self, done: Any, certified: Any) -> None:
        if certified is not None:
            self.display.say(f"no mask keeps fewer than {certified.num_kept / done.dim:.3%}")

    def held_out(self, done: findings.Measured, found: Any) -> Any:
        """Return the guarantee; None where there are no held-out examples, or too few."""
        p = self.problem
        if p.task.held_out is None or p.task.accuracy is None:
            return None
        try:
            return self.stage(
                "held-out", findings.Guaranteed, lambda: unseen.guarantee(p, done, found)
            )
        except ValueError as error:
            self.missing.append(f"held-out ({error})")
            return None

    def spectrum(self, done: findings.Measured) -> Any:
        """Return the estimate, from the spectra in the folder if there are any."""
        settings = self.problem.settings
        products = settings.num_probes * (settings.num_steps + settings.num_gap_steps)
        folder = self.store.below("spectrum")
        files = {} if folder is None else {
            name: folder / f"{name}.npz" for name in ("measure", "removed_measure")
        }  # fmt: skip
        known = {name: spectrum.load(file) for name, file in files.items() if file.exists()}
        if "measure" not in known and not self._fits("spectrum", products):
            return None
        began = time.monotonic()
        try:
            with self.display.stage("spectrum"):
                estimate = stages.predict(self.problem, done, folder, **known)
        except _SpentError:
            kept = "" if folder is None else "; what was done is kept, ask again to go on"
            self.missing.append(
                f"spectrum (the budget of {self.budget.seconds:g} s is spent{kept})"
            )
            return None
        for name, file in files.items():
            value = getattr(estimate, name)
            if value is not None and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                spectrum.save(file, value)
        self.products += products
        self.seconds["spectrum"] = time.monotonic() - began
        return estimate

    def _fits(self, name: str, products: float) -> bool:
        if self.can_stop and time.monotonic() - self.began >= self.budget.seconds:
            self.missing.append(f"{name} (the budget of {self.budget.seconds:g} s is spent)")
            return False
        if self.products + products > self.budget.products:
            left = self.budget.products - self.products
            self.missing.append(f"{name} (takes up to {products:g} products, {left:g} are left)")
            return False
        return True

    def _on_progress(self, stage: str, done: int, total: int) -> None:
        self.display.show(stage, done, total)
        spent = time.monotonic() - self.began >= self.budget.seconds
        if self.can_stop and spent and done < total:
            raise _SpentError


def _plain(batches: Any) -> Any:
    """Return batches on the host as any others, so that a study goes on with more memory."""
    return list(batches) if isinstance(batches, HostBatches) else batches


def _programs(task: Task) -> list[str]:
    """Return digests of the programs of loss and accuracy, which identify a study."""
    accuracy_data = task.batches if task.held_out is None else task.held_out
    return [
        repr(program_digest(function, task.params, first_batch(data), *task.operands))
        for function, data in ((task.loss, task.batches), (task.accuracy, accuracy_data))
        if function is not None
    ]


def about(task: Task, command: str | None = None) -> dict[str, Any]:
    """Describe the versions, the command and the devices of a study."""
    weights = np.asarray(flatten_weights(task.params, task.where)[0])
    return {
        "version": jaxlimit.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command or " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "devices": _devices(),
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "params": fingerprint(task.params),
        "num_examples": count_examples(task.batches),
        "on_host": isinstance(task.batches, HostBatches),
        "num_held_out": 0 if task.held_out is None else count_examples(task.held_out),
        "checkpoint": None if task.checkpoint is None else str(task.checkpoint.path),
        "zero_weights": float(np.mean(weights == 0)),
    }


def _commit() -> str | None:
    """Return the commit of a checkout that this package runs from; None for an installed one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return asked.stdout.strip()
    return None


def _devices() -> str:
    device = jax.devices()[0]
    kind = device.device_kind
    named = "" if kind.lower() == device.platform else f" ({kind})"
    return f"{jax.device_count()} {device.platform.upper()}{named}"
