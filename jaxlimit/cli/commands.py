"""The options of each command, and their parser; `--help` imports nothing heavy."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxlimit._core.checks import check_seed
from jaxlimit.studies.settings import StudySettings

TaskName = Annotated[str, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Find out from both sides how far a trained network can be pruned, and write the report."""

    task: TaskName
    """FILE.py:NAME or MODULE:NAME of a function that returns a jaxlimit.Task."""
    output: Path | None = None
    """Folder of the report and of what is finished; default runs/FILE-NAME."""
    seed: int = 0
    """Seed of the random probes."""
    budget: float | None = None
    """Seconds; the stages that do not fit are left out and named."""
    products: float | None = None
    """Hessian products; the stages that do not fit are left out and named."""
    devices: int | None = None
    """Devices that share the examples and vectors, of those that JAX shows; default what the task
    says, or else one."""
    dry_run: bool = False
    """Say what memory and time it will take, and stop."""
    settings: Annotated[StudySettings, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=StudySettings
    )

    def __post_init__(self) -> None:
        """Raise for a seed that is none."""
        check_seed("--seed", self.seed)


@dataclasses.dataclass(frozen=True)
class PruneOptions:
    """Write the pruned network of a study, in the form of its checkpoint, and its mask."""

    task: TaskName
    """The task that was studied."""
    output: Path | None = None
    """File or folder of the pruned parameters; default NAME-pruned beside the checkpoint."""
    study: Path | None = None
    """Folder of the study; default runs/FILE-NAME."""
    mask: Literal["found", "safe", "magnitude"] | None = None
    """The smallest mask found, the one that is safe on unseen data, or magnitude's; the first of
    these that the study has if not given."""
    ratio: float | None = None
    """Keep this fraction of the weights in place of the mask's own: the heaviest others join."""


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Put two studies side by side: settings that differ, and the limits with their intervals."""

    a: Annotated[Path, tyro.conf.Positional]
    """Folder of a study."""
    b: Annotated[Path, tyro.conf.Positional]
    """Folder of another."""
    figure: Path | None = None
    """Draw both sweeps to this PNG or SVG."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Say what memory and time a study of a task will take, without running it."""

    task: TaskName
    """The task."""
    settings: Annotated[StudySettings, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=StudySettings
    )


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Time and check estimators on one case: ours, those installed, and one of your own."""

    add: str | None = None
    """FILE.py:NAME of your own: for a product f(loss, params, batches) -> (v -> H v), for a trace
    f(product, key, dim) -> number, for a spectrum f(product, key, dim) -> (nodes, weights)."""
    kind: Literal["product", "trace", "spectrum"] = "product"
    """What is estimated."""
    case: str = "tiny-digits"
    """tiny-digits (exact reference), fc5-digits or conv-digits (deep reference)."""
    repeats: int = 5
    """Timed calls of each, in turns."""
    seed: int = 0
    """Seed of the network and of the probes."""

    def __post_init__(self) -> None:
        """Raise for a seed that is none."""
        check_seed("--seed", self.seed)


@dataclasses.dataclass(frozen=True)
class NewOptions:
    """Write a commented example of a task that runs as it is."""

    library: Annotated[Literal["linen", "nnx", "equinox"], tyro.conf.Positional] = "linen"
    """The library that your network is written in."""
    path: Annotated[Path, tyro.conf.Positional] = Path("my_model.py")
    """Where to."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Train a network of the zoo, predict how far it can be pruned, prune it, and compare.

    `jaxlimit run --help` lists its options.
    """


_OPTIONS = {
    "run": RunOptions,
    "study": StudyOptions,
    "prune": PruneOptions,
    "compare": CompareOptions,
    "plan": PlanOptions,
    "bench": BenchOptions,
    "new": NewOptions,
}


def parse(arguments: Sequence[str]) -> Callable[[], int]:
    """Return the call that the arguments ask for.

    Raises:
        SystemExit: for `--help`, and with code 2 for arguments that are not understood.
    """
    if list(arguments) == ["--version"]:
        return _version
    options = tyro.extras.subcommand_cli_from_dict(
        {name: _returning(kind) for name, kind in _OPTIONS.items()},
        prog="jaxlimit",
        description="How sparse can a trained network be pruned?",
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return functools.partial(_do, options)


def _returning(kind: type) -> type:
    return kind


def _do(options: object) -> int:
    from jaxlimit.cli import actions

    return actions.ACTIONS[type(options).__name__](options)


def _version() -> int:
    import jaxlimit

    print(f"jaxlimit {jaxlimit.__version__}")
    return 0
