"""The commands: each calls the library and prints the result."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlimit import pruning, reports
from jaxlimit._core.digests import fingerprint
from jaxlimit.cli import commands, forecast
from jaxlimit.cli.errors import UsageError
from jaxlimit.cli.tasks import find_task
from jaxlimit.studies import Budget, StudySettings, masks, study_task
from jaxlimit.studies.problem import Problem, accuracy_of
from jaxlimit.studies.summary import percent


def study(options: commands.StudyOptions) -> int:
    """Study a task, print the summary, write the report."""
    task = find_task(options.task)
    if options.devices is not None:
        task = dataclasses.replace(task, mesh=_mesh(options.devices))
    if options.dry_run:
        return _print_plan(task, options.settings)
    folder = options.output or run_folder(options.task)
    unlimited = float("inf")
    budget = Budget(
        unlimited if options.budget is None else options.budget,
        unlimited if options.products is None else options.products,
    )
    result = study_task(
        task,
        key=jax.random.key(options.seed),
        budget=budget,
        folder=folder,
        settings=options.settings,
        command=shlex.join(["jaxlimit", *sys.argv[1:]]),
    )
    print(result)
    print(f"\nreport: {result.save(folder)}")
    return 0


def _mesh(count: int) -> Any:
    devices = jax.local_devices()
    if not 1 <= count <= len(devices):
        raise UsageError(f"--devices must lie in [1, {len(devices)}], which JAX shows, got {count}")
    return jax.sharding.Mesh(np.asarray(devices[:count]), ("data",)) if count > 1 else None


def prune(options: commands.PruneOptions) -> int:
    """Write the pruned parameters and their mask, and print their loss and accuracy."""
    task = find_task(options.task)
    folder = options.study or run_folder(options.task)
    result = _studied(folder, task, options)
    name = options.mask or ("magnitude" if result["found"] is None else "found")
    try:
        mask = reports.read_mask(folder, name, task.params)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    if options.ratio is not None:
        if not 0 <= options.ratio <= 1:
            raise UsageError(f"--ratio must lie in [0, 1], got {options.ratio}")
        flat = pruning.flat_mask(mask, task.params, task.where)
        joined = masks.joined_mask(task, flat, options.ratio)
        mask = pruning.mask_tree(joined, task.params, task.where)
    output = options.output or _default_output(options.task, task)
    size = reports.write_pruned(task, output, mask)
    problem = Problem(task, jax.random.key(0), StudySettings(), lambda *_: None)
    keep = pruning.flat_mask(mask, task.params, task.where)
    loss = problem.mean(task.loss, problem.masked(keep), task.batches)
    accuracy = accuracy_of(problem, keep)
    print(f"kept: {percent(float(np.mean(keep)))} of {keep.size:,} weights")
    print(f"training loss: {loss:.4g}, dense {result['dense']['loss']:.4g}")
    if not np.isnan(accuracy):
        print(f"accuracy: {percent(accuracy)}, dense {percent(result['dense']['accuracy'])}")
    print(f"size: {size}")
    print(f"written: {output}, and the mask beside it")
    return 0


def _studied(folder: Path, task: Any, options: commands.PruneOptions) -> dict[str, Any]:
    try:
        result = reports.read(folder)
    except FileNotFoundError as error:
        again = f"jaxlimit study {options.task}"
        raise UsageError(f"{error}; make one with: {again}") from error
    if result["about"]["params"] != fingerprint(task.params):
        raise UsageError(f"{folder} is a study of other parameters than {options.task} gives now")
    return result


def compare(options: commands.CompareOptions) -> int:
    """Print two studies side by side."""
    try:
        found = reports.compare(options.a, options.b)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    print(found)
    if options.figure is not None:
        from jaxlimit import plotting

        plotting.save(found.plot(), options.figure)
        print(f"\nfigure: {options.figure}")
    return 0


def plan(options: commands.PlanOptions) -> int:
    """Print the memory and time that a study will take."""
    return _print_plan(find_task(options.task), options.settings)


def _print_plan(task: Any, settings: StudySettings) -> int:
    print(forecast.describe(task, settings))
    return 0


def bench(options: commands.BenchOptions) -> int:
    """Print a table of estimators on one case."""
    from jaxlimit.cli import benching

    print(benching.table(options))
    return 0


def new(options: commands.NewOptions) -> int:
    """Write an example."""
    from importlib import resources

    if options.path.exists():
        raise UsageError(f"{options.path} is there already: give another path")
    text = resources.files("jaxlimit.cli").joinpath("templates", f"{options.library}.txt")
    options.path.parent.mkdir(parents=True, exist_ok=True)
    options.path.write_text(text.read_text())
    print(f"written: {options.path}\nnext: jaxlimit study {options.path}:task")
    return 0


def run(options: commands.RunOptions) -> int:
    """Never called: `run` parses its own options."""
    raise AssertionError("jaxlimit run parses its own options")


def run_folder(where: str) -> Path:
    """Return the default folder of a task's study."""
    place, _, name = where.partition(":")
    return Path("runs") / f"{Path(place).stem}-{name or 'task'}"


def _default_output(where: str, task: Any) -> Path:
    if task.checkpoint is not None:
        path = task.checkpoint.path
        return path.with_name(f"{path.stem}-pruned{path.suffix}")
    return run_folder(where) / "pruned.safetensors"


ACTIONS = {
    "StudyOptions": study,
    "PruneOptions": prune,
    "CompareOptions": compare,
    "PlanOptions": plan,
    "BenchOptions": bench,
    "NewOptions": new,
    "RunOptions": run,
}
