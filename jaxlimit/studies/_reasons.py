"""What makes the numbers of an estimate less than certain, in words."""

from typing import Any

from jaxlimit._core.estimate import NORMAL_QUANTILE


def reasons_of(report: Any) -> tuple[str, ...]:
    """Say in words what makes the numbers of a report less than certain."""
    nothing_to_lose = _why_nothing_is_lost(report)
    if nothing_to_lose:
        return (nothing_to_lose,)
    ratio, reasons = float(report.prediction.ratio), _reasons_of_width(report)
    if ratio == 1:
        reasons.append("the prediction is 1: no weight may go within ε")
    spread = ratio - float(report.clipped.ratio)
    if spread > 0.1 * ratio:
        reasons.append(
            f"{spread / ratio:.0%} of ρ* rests on negative curvature (|λ| against clipped): the "
            "weights are not at a minimum of the loss in all directions"
        )
    corrected = float(report.corrected.ratio)
    if report.corrected.num_kept == 0:
        norm, mean = float(report.factors.norm), float(report.factors.trace) / report.dim
        rise = norm * mean / 2 * norm
        reasons.append(
            f"ε = {float(report.epsilon):.3g} is so large that all weights may go: a random step "
            f"of the length of w* raises the quadratic loss by {rise:.3g}; the published bound is "
            f"{ratio:.3g} all the same"
        )
    elif abs(corrected - ratio) > 0.1 * ratio:
        reasons.append(
            f"the random-subspace threshold is {corrected / ratio:.2f} times the published bound: "
            "the width theory is not exact on this spectrum"
        )
    return tuple(reasons)


def _why_nothing_is_lost(report: Any) -> str | None:
    """Say why no weight matters at all, if that is so."""
    if report.factors.norm == 0:
        return "all weights are 0 already, and ρ* is 0"
    if report.factors.trace == 0:
        return (
            "the Hessian vanishes, and ρ* is 0: to second order no weight matters to the loss "
            "(is it linear in the weights, or the network dead?)"
        )
    return None


def _reasons_of_width(report: Any) -> list[str]:
    """Name the largest part of an interval wider than a tenth, and what narrows it."""
    p, gap = report.prediction, report.gap
    width, of_gap = float(p.upper - p.lower), float(gap.upper - gap.lower)
    reasons = []
    ends = 2 * NORMAL_QUANTILE
    if of_gap > 0.1 * float(gap.value):
        low, high = 100 * float(gap.lower), 100 * float(gap.upper)
        reasons.append(
            f"Δ, by which the published upper bound lies above ρ*, is between {low:.3g} and "
            f"{high:.3g} % of the weights: raise num_gap_steps to narrow it"
        )
    if width <= 0.1 * float(p.ratio):
        return reasons
    joint = float(p.standard_error)
    by_epsilon = min(abs(float(report.sensitivity.epsilon * report.epsilon_error)), joint)
    by_probes = (joint**2 - by_epsilon**2) ** 0.5
    parts = {
        "the Lanczos depth: raise num_steps": width - ends * joint,
        "the probes: raise num_probes": ends * by_probes,
        "the estimate of ε: measure it on more examples": ends * by_epsilon,
    }
    part = max(parts, key=lambda name: parts[name])
    return [f"the interval is {width / float(p.ratio):.0%} of ρ*, most of it from {part}", *reasons]
