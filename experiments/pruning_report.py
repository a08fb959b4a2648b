"""What a run of pruning_limit.py tells: its figures as JSON, as pictures and as a table."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from jaxlimit import limits, planning, plotting, pruning, training
from jaxlimit.lab.reporting import console


def report(net, estimate, rise, sweeps, config) -> dict[str, Any]:
    """Collect all figures of one run."""
    loss, accuracy, epsilon = sweeps.loss, sweeps.accuracy, estimate.epsilon
    penalised = loss._replace(losses=loss.losses + config.l1 * loss.kept_norms)
    negated = accuracy._replace(losses=-accuracy.losses)
    by_accuracy = pruning.empirical_limit(negated, -accuracy.losses[-1], config.accuracy_tolerance)
    by_loss = pruning.empirical_limit(loss, loss.losses[-1], epsilon)
    edges = (*at_edge("by loss", by_loss, loss), *at_edge("by accuracy", by_accuracy, accuracy))
    distance = training.distance_from_minimum(
        net.module,
        net.trained.params,
        net.trained.state,
        net.train,
        l1=config.l1,
        l2=config.l2,
        normalization=net.trained.normalization,
        batch_size=config.images_at_once,
    )
    at = jnp.argmin(jnp.abs(accuracy.ratios - by_loss))
    baseline = {
        "support": float(pruning.support_fraction(net.trained.params)),
        "taylor": float(pruning.empirical_limit(rise, 0.0, epsilon, interpolate=True)),
    }
    return {
        "dim": estimate.dim,
        "epsilon": epsilon,
        "epsilon_error": estimate.epsilon_error,
        "eigenvalues": {
            "largest": estimate.largest,
            "smallest": estimate.smallest,
            "near_zero": estimate.near_zero,
        },
        "prediction": estimate.prediction,
        "clipped": estimate.clipped,
        "corrected": estimate.corrected,
        "upper_bound": estimate.upper_bound,
        "gap": estimate.gap.value,
        "gap_interval": [estimate.gap.lower, estimate.gap.upper],
        "sensitivity": estimate.sensitivity,
        "factors": estimate.factors,
        "trace_bound": estimate.trace_bound,
        "depth": estimate.measure.nodes.shape[-1],
        "hessian_images": min(config.hessian_images, len(net.train.labels)),
        "measured": {
            "by_loss": by_loss,
            "by_loss_with_l1": pruning.empirical_limit(penalised, penalised.losses[-1], epsilon),
            "by_accuracy": by_accuracy,
        },
        "baseline": baseline,
        "distance_from_minimum": distance._asdict()
        | {"final_learning_rate": net.trained.history.learning_rate[-1]},
        "dense": {"loss": loss.losses[-1], "accuracy": accuracy.losses[-1]},
        "pruned_accuracy": accuracy.losses[at],
        "reasons": (
            *estimate.reasons,
            *sampled(config.hessian_images, len(net.train.labels)),
            *repeated(float(estimate.prediction.ratio), baseline),
            *edges,
        ),
        "sweep": {
            "loss": {"ratios": loss.ratios, "values": loss.losses, "radii": loss.radii},
            "accuracy": {"ratios": accuracy.ratios, "values": accuracy.losses},
            "taylor": {"ratios": rise.ratios, "values": rise.losses},
        },
    }


def speed(net, config, stages) -> dict[str, float]:
    """Tell how fast training and the Hessian's products went once compiled, in this run alone.

    Beside each stands the share of the peak on the devices' data sheet, where `planning` has it.
    It counts what no way of computing goes without, a gradient's and a linearised product's matrix
    products and convolutions.
    """
    epochs, products = stages.rate("training"), stages.rate("spectrum")
    batch_size = config.batch_size
    speeds: dict[str, float] = {}
    if epochs:
        images = epochs * batch_size * (len(net.train.labels) // batch_size)
        speeds["images_per_second"] = images
        # JAX takes float32 operands for TensorFloat-32 on the devices that have a data sheet here.
        precision = "tf32" if config.training_dtype == "float32" else config.training_dtype
        if peak := planning.data_sheet_flops(precision):
            passes = 2 if config.sam_radius else 1
            flops, _ = flops_per_image(net, batch_size)
            speeds["training_share_of_peak"] = images * passes * flops / peak / num_devices(net)
    if products:
        speeds["products_per_second"] = products
        if peak := planning.data_sheet_flops(config.product_dtype):
            _, flops = flops_per_image(net, config.images_at_once)
            images = products * min(config.hessian_images, len(net.train.labels))
            speeds["products_share_of_peak"] = images * flops / peak / num_devices(net)
    return speeds


def flops_per_image(net, batch_size: int) -> tuple[float, float]:
    """Count the operations of a gradient and of a linearised Hessian product; nothing runs."""
    params = net.trained.params
    batch = tuple(array[:batch_size] for array in net.train[:2])
    gradient = jax.grad(lambda params: net.loss(params, batch, net.trained.state))
    product = jax.eval_shape(lambda params: jax.linearize(gradient, params)[1], params)
    of_gradient = planning.count_flops(gradient, params)
    of_product = planning.count_flops(lambda product, tangent: product(tangent), product, params)
    num_images = len(batch[0])
    return of_gradient / num_images, of_product / num_images


def num_devices(net) -> int:
    """Return how many devices shared the work."""
    return 1 if net.mesh is None else net.mesh.size


def sampled(num_images: int, num_in_all: int) -> tuple[str, ...]:
    """Say where the Hessian is not that of the loss which pruning is measured by."""
    if num_images >= num_in_all:
        return ()
    return (
        f"the Hessian is of {num_images:,} of the {num_in_all:,} training images, which is no part "
        "of the interval: raise hessian_images",
    )


def repeated(prediction: float, baseline: dict[str, float]) -> tuple[str, ...]:
    """Say where the prediction tells no more than a baseline does."""
    reasons = []
    if abs(prediction - baseline["taylor"]) < 0.1 * prediction:
        reasons.append("the second-order Taylor baseline gives the same within 10 %")
    if prediction > 0.5 * baseline["support"]:
        reasons.append(
            "the prediction is more than half of the support: beyond it nothing is left to remove, "
            "so that any prediction would come out near it"
        )
    return tuple(reasons)


def at_edge(name: str, limit, sweep) -> tuple[str, ...]:
    """Say where a limit is no more than an end of its sweep."""
    if limit == 1:
        return (f"the least pruned network of the sweep fails {name}: the measured limit is 1",)
    if limit == sweep.ratios[0]:
        end = f"{100 * float(limit):.3g} %"
        return (f"every ratio of the sweep passes {name}: the measured limit is at most {end}",)
    return ()


def draw(folder, estimate, sweeps, result, config) -> None:
    """Draw the three figures."""
    name = f"{config.model} on {config.dataset}"
    predicted, measured = float(estimate.prediction.ratio), float(result["measured"]["by_loss"])
    c = float(limits.ridge(estimate.prediction.radius, estimate.epsilon))
    figures = {
        "density": plotting.plot_density(
            estimate.measure, threshold=c, title=f"Hessian spectrum, {name}"
        ),
        "theory_and_practice": plotting.plot_theory_and_practice(
            estimate, sweeps.loss, measured, title=f"Theory against practice, {name}"
        ),
        "sweep": plotting.plot_sweep(
            sweeps.loss,
            sweeps.accuracy,
            dense_loss=float(result["dense"]["loss"]),
            epsilon=float(estimate.epsilon),
            predicted=predicted,
            measured=measured,
            title=f"Magnitude pruning, {name}",
        ),
    }
    for file, figure in figures.items():
        plotting.save(figure, folder / f"{file}.png")


def show(result: dict[str, Any], folder: Path) -> None:
    """Print a table that is read without the paper at hand."""
    r, p, e = result, result["prediction"], result["eigenvalues"]
    table = Table(title=f"Pruning limit of {r['config']['model']} on {r['config']['dataset']}, "
                  f"seed {r['seed']}", show_header=False)  # fmt: skip
    percent = lambda x: f"{float(x):.3%}"  # noqa: E731
    interval = lambda x: f"{percent(x['ratio'])}  [{percent(x['lower'])}, {percent(x['upper'])}]"  # noqa: E731
    rows = [
        ("weights D", f"{r['dim']:,}"),
        ("tolerated rise of the loss ε", f"{r['epsilon']:.3g}"),
        ("Hessian eigenvalues", f"from {e['smallest']:.3g} to {e['largest']:.3g}; "
         f"up to {e['near_zero']:.2%} of them flat at this ε"),
        ("PREDICTED limit ρ*, kept", f"{interval(p)}  (95 %, probes and depth {r['depth']})"),
        ("  standard error of probes and ε", percent(p["standard_error"])),
        ("  with λ < 0 taken for flat", interval(r["clipped"])),
        ("  corrected threshold", interval(r["corrected"])),
        ("  gap Δ to the upper bound", percent(r["gap"])),
        ("  bound by the trace", percent(r["trace_bound"])),
        ("MEASURED limit, by training loss", percent(r["measured"]["by_loss"])),
        ("  with the l1 term in the loss", percent(r["measured"]["by_loss_with_l1"])),
        ("  by test accuracy", percent(r["measured"]["by_accuracy"])),
        ("baseline: support of the weights", percent(r["baseline"]["support"])),
        ("baseline: second-order Taylor", percent(r["baseline"]["taylor"])),
        ("distance from the minimum", f"{r['distance_from_minimum']['relative']:.2e} of ‖w‖, "
         f"final rate {r['distance_from_minimum']['final_learning_rate']:.1e}"),
        ("test accuracy", f"dense {r['dense']['accuracy']:.2%}, pruned to the measured limit "
         f"{r['pruned_accuracy']:.2%}"),
        ("seconds", ", ".join(f"{k} {v:.1f}" for k, v in r["seconds"].items())),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for reason in r["reasons"]:
        console.print(f"note: {reason}")
    console.print(f"written to {folder}")
