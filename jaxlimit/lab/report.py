"""The output of a run: its result, its figures and its table."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxlimit import LimitEstimate, limits, planning, plotting, pruning, training
from jaxlimit.lab.console import Stages, console
from jaxlimit.lab.environment import environment
from jaxlimit.lab.figures import plot_training
from jaxlimit.lab.results import (
    Baseline,
    Curve,
    Dense,
    Distance,
    Eigenvalues,
    Epochs,
    Factors,
    Interval,
    Limit,
    Measured,
    RunResult,
    Sensitivity,
    Sweep,
    TwoSides,
)
from jaxlimit.lab.settings import RunConfig
from jaxlimit.pruning import SweepResult
from jaxlimit.spectrum import SpectralMeasure


class Findings(NamedTuple):
    """The predictions and measurements of a run.

    Attributes:
        estimate: the theory.
        rise: forecast of the rise of the loss by a second-order Taylor expansion.
        loss: sweep of the training loss.
        accuracy: sweep of the test accuracy.
        sides: the smallest mask from both sides, None if it was not searched for.
    """

    estimate: LimitEstimate
    rise: SweepResult
    loss: SweepResult
    accuracy: SweepResult
    sides: TwoSides | None = None


def collect(
    net: Any,
    findings: Findings,
    config: RunConfig,
    *,
    seed: int,
    stages: Stages,
    spectra: dict[str, Any],
) -> RunResult:
    """Collect everything that one run found."""
    estimate, rise, loss, accuracy, sides = findings
    measured = limits_found(findings, config)
    baseline = Baseline(
        support=float(pruning.support_fraction(net.trained.params)),
        taylor=float(pruning.empirical_limit(rise, 0.0, estimate.epsilon, interpolate=True)),
    )
    gap = estimate.gap
    return RunResult(
        seed=seed,
        config=config,
        dim=estimate.dim,
        epsilon=float(estimate.epsilon),
        epsilon_error=float(estimate.epsilon_error),
        eigenvalues=Eigenvalues(
            *map(float, (estimate.largest, estimate.smallest, estimate.near_zero))
        ),
        prediction=Limit(**numbers(estimate.prediction)),
        clipped=Limit(**numbers(estimate.clipped)),
        corrected=Limit(**numbers(estimate.corrected)),
        upper_bound=Interval(**numbers(estimate.upper_bound)),
        gap=float(gap.value),
        gap_interval=(float(gap.lower), float(gap.upper)),
        sensitivity=Sensitivity(**numbers(estimate.sensitivity)),
        factors=Factors(**numbers(estimate.factors)),
        trace_bound=float(estimate.trace_bound),
        depth=estimate.measure.nodes.shape[-1],
        hessian_images=min(config.hessian_images, len(net.train.labels)),
        measured=measured,
        baseline=baseline,
        distance_from_minimum=distance(net, config),
        dense=Dense(float(loss.losses[-1]), float(accuracy.losses[-1])),
        pruned_accuracy=float(
            accuracy.losses[jnp.argmin(jnp.abs(accuracy.ratios - measured.by_loss))]
        ),
        reasons=reasons(net, findings, config, measured, baseline),
        sweep=Sweep(
            curve(loss, with_radii=True),
            curve(accuracy),
            curve(rise),
        ),
        two_sides=sides,
        spectra=spectra,
        training=epochs(net.trained.history),
        environment=environment(),
        seconds=stages.seconds | {"total": sum(stages.seconds.values())},
        speed=speed(net, config, stages),
    )


def numbers(result: Any) -> dict[str, Any]:
    """Turn a NamedTuple of scalars into Python's own numbers, by name."""
    return {name: np.asarray(value).item() for name, value in result._asdict().items()}


def epochs(history: training.Metrics) -> Epochs:
    """Take the training epoch by epoch from its metrics."""
    names = [field.name for field in dataclasses.fields(Epochs)]
    return Epochs(**{name: np.asarray(getattr(history, name)).tolist() for name in names})


def curve(sweep: SweepResult, *, with_radii: bool = False) -> Curve:
    """Take a curve from a sweep."""
    parts = (sweep.ratios, sweep.losses, *([sweep.radii] if with_radii else []))
    return Curve(*(np.asarray(part).tolist() for part in parts))


def limits_found(findings: Findings, config: RunConfig) -> Measured:
    """Find the measured limits in the sweeps."""
    loss, accuracy = findings.loss, findings.accuracy
    epsilon = findings.estimate.epsilon
    # Of a reweighted penalty the sweep knows no value: the limit with it is that without.
    l1 = 0.0 if config.training.l1_delta else config.training.l1
    penalised = loss._replace(losses=loss.losses + l1 * loss.kept_norms)
    negated = accuracy._replace(losses=-accuracy.losses)
    above = np.asarray(accuracy.ratios)[np.asarray(accuracy.losses > accuracy.losses[-1])]
    limit = pruning.empirical_limit
    return Measured(
        by_loss=float(limit(loss, loss.losses[-1], epsilon)),
        by_loss_with_l1=float(limit(penalised, penalised.losses[-1], epsilon)),
        by_accuracy=float(limit(negated, -accuracy.losses[-1], config.accuracy_tolerance)),
        above_dense_accuracy=float(above.min()) if above.size else None,
    )


def penalty(net: Any, config: RunConfig) -> Any:
    """Return the strength of the l1 penalty, of each weight where it is reweighted."""
    told = config.training
    if not told.l1_delta:
        return told.l1
    return training.l1_weights(net.trained.params, told.l1_delta, strength=told.l1)


def distance(net: Any, config: RunConfig) -> Distance:
    """Measure how far the network is from the minimum of its penalised loss."""
    found = training.distance_from_minimum(
        net.module,
        net.trained.params,
        net.trained.state,
        net.train,
        l1=penalty(net, config),
        l2=config.training.l2,
        normalization=net.trained.normalization,
        batch_size=config.images_at_once,
    )
    rate = float(net.trained.history.learning_rate[-1])
    return Distance(**numbers(found), final_learning_rate=rate)


def reasons(
    net: Any, findings: Findings, config: RunConfig, measured: Measured, baseline: Baseline
) -> tuple[str, ...]:
    """Say in words what makes the numbers uncertain."""
    return (
        *findings.estimate.reasons,
        *sampled(config.hessian_images, len(net.train.labels)),
        *repeated(float(findings.estimate.prediction.ratio), baseline),
        *at_edge("by loss", measured.by_loss, findings.loss),
        *at_edge("by accuracy", measured.by_accuracy, findings.accuracy),
        *(findings.sides.notes if findings.sides else ()),
    )


def speed(net: Any, config: RunConfig, stages: Stages) -> dict[str, float]:
    """Return the speed of training and of Hessian products after compilation, in this run alone.

    With each goes the share of the peak on the devices' data sheet, if `planning` knows it. It
    counts the matrix products and convolutions of a gradient and of a linearised product.
    """
    epochs, products = stages.rate("training"), stages.rate("spectrum")
    batch_size = config.training.batch_size
    speeds: dict[str, float] = {}
    if epochs:
        images = epochs * batch_size * (len(net.train.labels) // batch_size)
        speeds["images_per_second"] = images
        # JAX takes float32 operands for TensorFloat-32 on the devices that have a data sheet here.
        precision = "tf32" if config.training_dtype == "float32" else config.training_dtype
        if peak := planning.data_sheet_flops(precision):
            passes = 2 if config.training.sam_radius else 1
            flops, _ = flops_per_image(net, batch_size)
            speeds["training_share_of_peak"] = images * passes * flops / peak / num_devices(net)
    if products:
        speeds["products_per_second"] = products
        if peak := planning.data_sheet_flops(config.product_dtype):
            _, flops = flops_per_image(net, config.images_at_once)
            images = products * min(config.hessian_images, len(net.train.labels))
            speeds["products_share_of_peak"] = images * flops / peak / num_devices(net)
    return speeds


def flops_per_image(net: Any, batch_size: int) -> tuple[float, float]:
    """Count the operations of a gradient and of a linearised Hessian product; nothing runs."""
    params = net.trained.params
    batch = tuple(array[:batch_size] for array in net.train[:2])
    gradient = jax.grad(lambda params: net.loss(params, batch, net.trained.state))
    product = jax.eval_shape(lambda params: jax.linearize(gradient, params)[1], params)
    of_gradient = planning.count_flops(gradient, params)
    of_product = planning.count_flops(lambda product, tangent: product(tangent), product, params)
    num_images = len(batch[0])
    return of_gradient / num_images, of_product / num_images


def num_devices(net: Any) -> int:
    """Return how many devices shared the work."""
    return 1 if net.mesh is None else net.mesh.size


def sampled(num_images: int, num_in_all: int) -> tuple[str, ...]:
    """Say if the Hessian is not that of the loss by which pruning is measured."""
    if num_images >= num_in_all:
        return ()
    return (
        f"the Hessian is of {num_images:,} of the {num_in_all:,} training images, which is no part "
        "of the interval: raise hessian_images",
    )


def repeated(prediction: float, baseline: Baseline) -> tuple[str, ...]:
    """Say if the prediction adds nothing to a baseline."""
    reasons = []
    if abs(prediction - baseline.taylor) < 0.1 * prediction:
        reasons.append("the second-order Taylor baseline gives the same within 10 %")
    if prediction > 0.5 * baseline.support:
        reasons.append(
            "the prediction is more than half of the support, beyond which nothing is left to "
            "remove: any prediction would come out near it"
        )
    return tuple(reasons)


def at_edge(name: str, limit, sweep) -> tuple[str, ...]:
    """Say if a limit is only an end of its sweep."""
    if limit == 1:
        return (f"the least pruned network of the sweep fails {name}: the measured limit is 1",)
    if limit == sweep.ratios[0]:
        end = f"{100 * float(limit):.3g} %"
        return (f"every ratio of the sweep passes {name}: the measured limit is at most {end}",)
    return ()


class Drawn(NamedTuple):
    """The part of a run that a figure of theory and practice needs."""

    prediction: Limit
    measure: SpectralMeasure
    epsilon: float


def draw(
    folder: Path,
    measure: SpectralMeasure,
    result: RunResult,
    kinds: tuple[str, ...] = ("png", "svg"),
) -> None:
    """Draw the figures of a run from its spectrum and its result, each as all `kinds` of file."""
    name = f"{result.config.model} on {result.config.dataset}"
    prediction, measured = result.prediction, result.measured.by_loss
    loss, accuracy = swept(result.sweep.loss), swept(result.sweep.accuracy)
    c = float(limits.ridge(prediction.radius, result.epsilon))
    figures = {
        "density": plotting.plot_density(measure, threshold=c, title=f"Hessian spectrum, {name}"),
        "theory_and_practice": plotting.plot_theory_and_practice(
            Drawn(prediction, measure, result.epsilon),
            loss,
            measured,
            title=f"Theory against practice, {name}",
        ),
        "sweep": plotting.plot_sweep(
            loss,
            accuracy,
            dense_loss=result.dense.loss,
            epsilon=result.epsilon,
            predicted=prediction.ratio,
            measured=measured,
            title=f"Magnitude pruning, {name}",
        ),
    }
    if result.two_sides:
        figures["two_sides"] = plotting.plot_two_sides({name: sides_of(result)})
    if result.training:
        figures["training"] = plot_training({name: result.training})
    for file, figure in figures.items():
        for kind in kinds:
            plotting.save(figure, folder / f"{file}.{kind}")


def swept(curve: Curve) -> SweepResult:
    """Turn a curve back into a sweep, as far as the figures need it."""
    ratios, values = np.array(curve.ratios), np.array(curve.values)
    radii = np.zeros_like(values) if curve.radii is None else np.array(curve.radii)
    return SweepResult(ratios, values, 0 * ratios, radii, 0 * ratios)  # pyright: ignore[reportArgumentType]


def two_sides_rows(result: RunResult) -> list[tuple[str, str]]:
    """Lay out both sides of the limit; nothing if there was no search."""
    if (sides := result.two_sides) is None:
        return []
    certified = "none: the loss has no Gauss-Newton matrix"
    if sides.certificate is not None:
        certified = f"{sides.certificate:.3%}  (within the Gauss-Newton quadratic)"
    return [
        ("FOUND: a mask within ε keeps", f"{sides.found:.3%}  (by {sides.method})"),
        ("CERTIFIED: no mask keeps less than", certified),
    ]


def sides_of(result: RunResult) -> dict[str, float | None]:
    """Take from a result what `plotting.plot_two_sides` shows of it."""
    sides = result.two_sides
    return {
        "certificate": sides and sides.certificate,
        "found": sides and sides.found,
        "magnitude": sides.candidates["magnitude"] if sides else result.measured.by_loss,
        "predicted": result.prediction.ratio,
        "corrected": result.corrected.ratio,
    }


def show(result: RunResult, folder: Path) -> None:
    """Print a table that can be read without the paper."""
    r, e, away = result, result.eigenvalues, result.distance_from_minimum
    table = Table(title=f"Pruning limit of {r.config.model} on {r.config.dataset}, seed {r.seed}",
                  show_header=False)  # fmt: skip
    percent = lambda x: f"{x:.3%}"  # noqa: E731
    interval = lambda x: f"{percent(x.ratio)}  [{percent(x.lower)}, {percent(x.upper)}]"  # noqa: E731
    rows = [
        ("weights D", f"{r.dim:,}"),
        ("tolerated rise of the loss ε", f"{r.epsilon:.3g}"),
        *two_sides_rows(r),
        ("Hessian eigenvalues", f"from {e.smallest:.3g} to {e.largest:.3g}; "
         f"up to {e.near_zero:.2%} of them flat at this ε"),
        ("PREDICTED limit ρ*, kept", f"{interval(r.prediction)}  "
         f"(95 %, probes and depth {r.depth})"),
        ("  standard error of probes and ε", percent(r.prediction.standard_error)),
        ("  with λ < 0 taken for flat", interval(r.clipped)),
        ("  corrected threshold", interval(r.corrected)),
        ("  gap Δ to the upper bound", percent(r.gap)),
        ("  bound by the trace", percent(r.trace_bound)),
        ("MEASURED limit, by training loss", percent(r.measured.by_loss)),
        ("  with the l1 term in the loss", percent(r.measured.by_loss_with_l1)),
        ("  by test accuracy", percent(r.measured.by_accuracy)),
        ("baseline: support of the weights", percent(r.baseline.support)),
        ("baseline: second-order Taylor", percent(r.baseline.taylor)),
        ("distance from the minimum", f"{away.relative:.2e} of ‖w‖, "
         f"final rate {away.final_learning_rate:.1e}"),
        ("test accuracy", f"dense {r.dense.accuracy:.2%}, pruned to the measured limit "
         f"{r.pruned_accuracy:.2%}"),
        ("seconds", ", ".join(f"{k} {v:.1f}" for k, v in r.seconds.items())),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for reason in r.reasons:
        console.print(f"note: {reason}")
    console.print(f"written to {folder}")
