"""The result of a run as a typed object, and the only reader of run folders."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxlimit import spectrum
from jaxlimit.lab.content import OtherRunError, build, plain, read_json, write_json
from jaxlimit.lab.settings import RunConfig, nested

SCHEMA = 2
FILE = "result.json"
# The spectra of a run, by their names in `LimitEstimate`.
SPECTRA = {"measure": "spectrum.npz", "removed_measure": "removed_spectrum.npz"}


@dataclasses.dataclass(frozen=True)
class Limit:
    """A predicted limit; see `limits.PruningLimit`."""

    ratio: float
    lower: float
    upper: float
    standard_error: float
    num_kept: int
    radius: float
    threshold: float


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    standard_error: float
    lower: float
    upper: float


@dataclasses.dataclass(frozen=True)
class Eigenvalues:
    """The ends of the spectrum, and the greatest share of it that can be flat."""

    largest: float
    smallest: float
    near_zero: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How the prediction changes; see `limits.Sensitivity`."""

    epsilon: float
    radius: float
    scale: float


@dataclasses.dataclass(frozen=True)
class Factors:
    """Weight magnitude and flatness; see `limits.KeyFactors`."""

    radius: float
    norm: float
    removed: float
    trace: float
    rise: float
    bound: float
    elasticity: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measured limits: by training loss, with the l1 term, and by test accuracy."""

    by_loss: float
    by_loss_with_l1: float
    by_accuracy: float
    above_dense_accuracy: float | None = None
    """The sparsest network of the sweep that beats the dense one on the test set."""


@dataclasses.dataclass(frozen=True)
class TwoSides:
    """The smallest mask within ε, from both sides.

    Attributes:
        found: the fraction that the smallest mask found keeps; its true loss is within ε.
        method: how it was found.
        certificate: no mask keeps less, within the Gauss-Newton quadratic; None without one.
        open: how much more further products may add to the certificate; None where not told.
        candidates: the smallest fraction that each way of choosing reached.
        notes: what was left out, and why.
        loss: the true training loss of the mask that was found.
        accuracy: its test accuracy.
        live: the fraction of weights that are not dead.
        shares: what the mask takes of ε: linear, quadratic, remainder.
        layers: weights of each layer under `all`, and how many of them `found` and `magnitude`
            keep at their smallest, and `by_layer` asks for where it was asked.
        residual: how far the live weights are from an l1 minimum, as `pruning.L1Residual`; None
            without l1.
    """

    found: float
    method: str
    certificate: float | None
    candidates: dict[str, float]
    notes: tuple[str, ...] = ()
    loss: float | None = None
    accuracy: float | None = None
    live: float | None = None
    shares: dict[str, float] | None = None
    layers: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    residual: dict[str, float] | None = None
    open: float | None = None


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The baselines: the support of the weights, and a second-order Taylor expansion."""

    support: float
    taylor: float


@dataclasses.dataclass(frozen=True)
class Distance:
    """The distance of the network from its minimum; see `training.MinimumDistance`."""

    norm: float
    relative: float
    gradient_norm: float
    final_learning_rate: float


@dataclasses.dataclass(frozen=True)
class Dense:
    """The unpruned network's training loss and test accuracy."""

    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values against the ratio."""

    ratios: list[float]
    values: list[float]
    radii: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Training loss, test accuracy, and the Taylor forecast of the rise of the loss."""

    loss: Curve
    accuracy: Curve
    taylor: Curve


@dataclasses.dataclass(frozen=True)
class Epochs:
    """The training, epoch by epoch, as `training.Metrics` has it."""

    epoch: list[int]
    loss: list[float]
    data_loss: list[float]
    accuracy: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """Everything that one seed of a run found, with its settings.

    Attributes:
        schema: version of this form; 1 had the settings of the training beside the others.
        spectra: identity of the spectra that it was read off; None in results older than that.
        training: loss and accuracy of every epoch; None in results older than that.
    """

    schema: int = SCHEMA
    seed: int
    config: RunConfig
    dim: int
    epsilon: float
    epsilon_error: float
    eigenvalues: Eigenvalues
    prediction: Limit
    clipped: Limit
    corrected: Limit
    upper_bound: Interval
    gap: float
    gap_interval: tuple[float, float]
    sensitivity: Sensitivity
    factors: Factors
    trace_bound: float
    depth: int
    hessian_images: int
    measured: Measured
    baseline: Baseline
    distance_from_minimum: Distance
    dense: Dense
    pruned_accuracy: float
    reasons: tuple[str, ...]
    sweep: Sweep
    two_sides: TwoSides | None = None
    spectra: dict[str, Any] | None = None
    training: Epochs | None = None
    environment: dict[str, Any]
    seconds: dict[str, float]
    speed: dict[str, float] = dataclasses.field(default_factory=dict)

    def thinned(self, num_points: int = 40) -> "RunResult":
        """Keep at most so many points of each curve, both ends among them, and no path of data."""

        def thin(values: list | None) -> list | None:
            if values is None or len(values) <= num_points:
                return values
            last = len(values) - 1
            return [values[round(i * last / (num_points - 1))] for i in range(num_points)]

        def thin_all(curve: Any) -> Any:
            return type(curve)(**{part: thin(values) for part, values in vars(curve).items()})

        return dataclasses.replace(
            self,
            config=self.config.replace(data_dir=None),
            sweep=Sweep(**{name: thin_all(curve) for name, curve in vars(self.sweep).items()}),
            training=self.training and thin_all(self.training),
        )


def write_result(folder: Path, result: RunResult) -> RunResult:
    """Write a result, which may hold JAX arrays, to its folder; return it as it will be read."""
    write_json(folder / FILE, result)
    return parse(plain(result), str(folder / FILE))


def read_result(path: Path) -> RunResult:
    """Read a result from its file or its run folder, in this form or that of an earlier version.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it was damaged or changed since, or is no result of a run.
    """
    path = path if path.suffix == ".json" else path / FILE
    return parse(read_json(path), str(path))


def parse(content: dict[str, Any], where: str) -> RunResult:
    """Make a result from the content of its file."""
    schema = content.get("schema", 1)
    if schema not in (1, SCHEMA):
        raise ValueError(f"{where}: schema must be 1 or {SCHEMA}, got {schema!r}")
    try:
        config = content["config"]
        known = {field.name for field in dataclasses.fields(RunConfig)}
        # Version 1 held the flags of one process's command line too: seeds, output and others.
        config = {n: value for n, value in nested(config).items() if n in known}
        # Until then no mask was searched for.
        config.setdefault("find_mask", "two_sides" in content)
        content = {"hessian_images": config.get("hessian_images")} | content
        content |= {"schema": SCHEMA, "config": config}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} must be the result of a run, got one without config") from error
    try:
        return build(RunResult, content, where, strict=False)
    except TypeError as error:
        raise ValueError(f"{error}: not the result of a run") from error


def known_result(folder: Path, config: RunConfig) -> RunResult | None:
    """Read the result in a seed's folder; None if it is not there or was made with other settings.

    A result older than a setting was made with its present default; a result that lacks a present
    measurement does not count. The place of the data does not matter.

    Raises:
        ValueError: if the file is damaged or was changed since.
    """
    try:
        content = read_json(folder / FILE)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; move it away to measure again") from error
    try:
        result = parse(content, str(folder / FILE))
    except ValueError:
        return None
    here = {"data_dir": None}
    return result if result.config.replace(**here) == config.replace(**here) else None


def read_spectrum(folder: Path, result: RunResult) -> spectrum.SpectralMeasure:
    """Read the spectrum of a run's result, not that of a later run in the same folder.

    Raises:
        ValueError: if the file in the folder is of another run, or damaged.
    """
    return spectrum.load(folder / SPECTRA["measure"], identity=result.spectra)


def kept_spectrum(path: Path, identity: dict[str, Any]) -> spectrum.SpectralMeasure | None:
    """Read a spectrum; None if it is not there or was made from something else.

    Raises:
        ValueError: if what is there cannot be read.
    """
    try:
        return spectrum.load(path, identity=identity)
    except (FileNotFoundError, OtherRunError):
        return None
    except ValueError as error:
        raise ValueError(f"{error}; move it away to measure again") from error
