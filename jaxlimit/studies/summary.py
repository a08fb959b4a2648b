"""A study in words: its numbers, its verdict, and what is missing."""

import math
import textwrap
from typing import Any, NamedTuple

import numpy as np

MAX_LINES = 25
_WIDTH = 100


class Side(NamedTuple):
    """One number of the summary.

    Attributes:
        key: a short name for programs.
        label: what it is, in words.
        ratio: fraction of weights kept; None if unknown.
        low: lower end of its interval; None without one.
        high: upper end of its interval; None without one.
        note: a sentence on its origin.
    """

    key: str
    label: str
    ratio: float | None
    low: float | None
    high: float | None
    note: str


def percent(ratio: float | None) -> str:
    """Show a ratio in per cent with three digits.

    >>> percent(0.00574), percent(0.4), percent(None)
    ('0.574 %', '40 %', '-')
    """
    return "-" if ratio is None or math.isnan(ratio) else f"{100 * ratio:.3g} %"


def points(count: float) -> str:
    """Show points of accuracy.

    >>> points(1.0), points(0.5)
    ('1 point', '0.5 points')
    """
    return f"{count:g} point{'' if count == 1 else 's'}"


def sides(study: Any) -> list[Side]:
    """Return the limits of a study, from the bound that no mask beats to the safe ratio."""
    measured, found, estimate = study.measured, study.found, study.estimate
    dim, epsilon = measured.dim, measured.epsilon
    rows = []
    if study.certified is not None:
        ratio = study.certified.num_kept / dim
        shift = study.certified.shift
        matrix = "Gauss-Newton" if math.isnan(shift) else f"Hessian's (+ {shift:.2g} I)"
        rows.append(Side("certified", "no mask keeps fewer", ratio, None, None,
                         f"certificate of the {matrix} quadratic at ε"))  # fmt: skip
    if found is not None:
        rise = found.loss - measured.dense_loss
        moved = f"rises by {rise:.3g} of" if rise >= 0 else f"falls by {-rise:.3g}, where"
        note = f"{found.method}; the loss {moved} ε = {epsilon:.3g}"
        note += " is allowed" if rise < 0 else ""
        rows.append(Side("found", "smallest mask found", found.num_kept / dim, None, None, note))
    rows.append(Side("magnitude", "magnitude, measured", measured.by_loss, None, None,
                     "training loss within ε at it and at every larger ratio tried"))  # fmt: skip
    if not math.isnan(measured.by_accuracy):
        allowed = 100 * study.settings.accuracy_tolerance
        rows.append(Side("accuracy", "magnitude, by accuracy", measured.by_accuracy, None, None,
                         f"{_data(study)} accuracy within {points(allowed)}"))  # fmt: skip
    if estimate is not None:
        p = estimate.prediction
        note = "forecast for magnitude, from the Hessian's spectrum"
        rows.append(Side("predicted", "predicted ρ*, published", float(p.ratio), float(p.lower),
                         float(p.upper), note))  # fmt: skip
    if (safe := study.guaranteed) is not None:
        rows.append(Side("safe", "safe on unseen data", safe.ratio, None, None,
                         f"accuracy within {points(100 * safe.tolerance)} with probability "
                         f"{100 * (1 - safe.delta):g} %, from {safe.num_examples:,} held-out "
                         "examples"))  # fmt: skip
    return rows


def verdict(study: Any) -> list[str]:
    """Say in sentences what to do, what not to do and why."""
    said = [*_on_the_prediction(study), *_on_the_mask(study), *_on_unseen_data(study)]
    said += _on_the_network(study)
    reasons = () if study.estimate is None else study.estimate.reasons
    return [*said, *map(_sentence, reasons)]


def _sentence(words: Any) -> str:
    words = str(words).rstrip(".")
    return f"{words[:1].upper()}{words[1:]}."


def _on_the_prediction(study: Any) -> list[str]:
    if study.estimate is None:
        return []
    measured, at = study.measured, study.at_prediction
    predicted, needed = float(study.estimate.prediction.ratio), measured.by_loss
    if predicted >= 0.9 * needed:
        if predicted > 1.1 * needed:
            first = (f"ρ* = {percent(predicted)} is no limit here: magnitude gets by with "
                     f"{percent(needed)}.")  # fmt: skip
        else:
            first = (
                f"ρ* = {percent(predicted)} and magnitude, {percent(needed)}, agree within 10 %."
            )
        return [first, *_beside_the_sides(study, predicted)]
    cost = ""
    if at is not None:
        rise = at.loss - measured.dense_loss
        cost = f" At ρ* the loss rises by {rise:.3g}, {rise / measured.epsilon:.3g} times ε" * (
            measured.epsilon > 0
        )
        if not math.isnan(at.accuracy):
            cost += (f"{',' if cost else ' At ρ*'} and {_data(study)} accuracy goes from "
                     f"{percent(measured.dense_accuracy)} to {percent(at.accuracy)}")  # fmt: skip
        cost += "." * bool(cost)
    return [
        f"Do not prune at ρ* = {percent(predicted)}: magnitude needs {percent(needed)}.{cost}",
        *_beside_the_sides(study, predicted),
    ]


def _beside_the_sides(study: Any, predicted: float) -> list[str]:
    if study.certified is None or study.found is None:
        return []
    low, high = study.certified.num_kept / study.measured.dim, study.ratio
    if predicted < low:
        return ["ρ* lies below the certificate: within the quadratic model no mask does what it "
                "promises."]  # fmt: skip
    if predicted > high:
        return ["ρ* lies above the mask found, so it is no limit of what a mask can do."]
    return ["ρ* lies between the certificate and the mask found."]


def _on_the_mask(study: Any) -> list[str]:
    measured, found, said = study.measured, study.found, []
    if found is None:
        return []
    said += _on_the_certificate(study)
    said += map(_sentence, found.notes)
    lost = measured.dense_accuracy - found.accuracy
    if not math.isnan(lost):
        said.append(f"With the mask {_data(study)} accuracy is {percent(found.accuracy)}, dense "
                    f"{percent(measured.dense_accuracy)}.")  # fmt: skip
        if lost > study.settings.accuracy_tolerance:
            said[-1] += (" That is more than the tolerance: ε is too large for accuracy; give a "
                         "smaller one, or prune to the safe ratio.")  # fmt: skip
    return said


def _on_the_certificate(study: Any) -> list[str]:
    certified, found = study.certified, study.found
    if certified is None:
        return []
    said, missed = [], abs(certified.shares[2])
    binds = not missed > 0.5  # NaN where the shares are not known
    if certified.num_kept:
        ratio = found.num_kept / certified.num_kept
        if ratio < 1:
            said.append("The mask found is sparser than the certificate: at it the true loss lies "
                        "below the quadratic model, which then bounds nothing.")  # fmt: skip
        else:
            between = "; the best mask lies between them" * binds
            said.append(f"The mask found keeps {ratio:.3g} times what the certificate asks "
                        f"for{between}.")  # fmt: skip
    if not np.isnan(certified.shares).any():
        linear, quadratic, beyond = 100 * certified.shares
        said.append(f"Of ε the mask's linear term takes {linear:.3g} %, its quadratic term "
                    f"{quadratic:.3g} %, and what the model misses {beyond:.3g} %.")  # fmt: skip
        if not binds:
            said[-1] += (" So the quadratic is not the loss here, and the certificate, which "
                         "bounds the quadratic, does not bind the loss.")  # fmt: skip
    return said


def _on_unseen_data(study: Any) -> list[str]:
    safe = study.guaranteed
    if safe is None:
        return []
    if safe.ratio >= 1:
        return [f"No ratio is shown to be safe: {safe.num_examples:,} held-out examples are too "
                "few, or accuracy falls at once."]  # fmt: skip
    return [f"Prune to {percent(safe.ratio)} if unseen data matter: there accuracy is "
            f"{percent(safe.accuracy)} on the held-out examples."]  # fmt: skip


def _on_the_network(study: Any) -> list[str]:
    measured, said = study.measured, []
    if study.about.get("on_host"):
        said.append("The training examples are more than the memory holds: each pass read them "
                    "from a file or the host, batch by batch.")  # fmt: skip
    zeros = study.about.get("zero_weights", 0.0)
    if zeros > 0.01:
        said.append(f"{percent(zeros)} of the weights are 0 already: they have been pruned, or "
                    "belong to dead units.")  # fmt: skip
    if measured.edge:
        said.append(f"Every ratio of the sweep passes: magnitude's limit is at most "
                    f"{percent(measured.by_loss)}; give a smaller smallest_ratio.")  # fmt: skip
    if measured.by_loss == 1:
        said.append("Magnitude cannot remove even one step's weights within ε.")
    if measured.epsilon == 0:
        said.append("ε is 0: all examples have the same loss, or it was given so.")
    return said


def text(study: Any) -> str:
    """Lay a study out in at most 25 lines."""
    measured = study.measured
    accuracy = measured.dense_accuracy
    head = (f"How far can this network be pruned?  D = {measured.dim:,} weights, "
            f"loss {measured.dense_loss:.4g}, ε = {measured.epsilon:.3g}")  # fmt: skip
    if not math.isnan(accuracy):
        head += f", {_data(study)} accuracy {percent(accuracy)}"
    lines = [*textwrap.wrap(head, _WIDTH), "", "weights kept"]
    for side in sides(study):
        span = "" if side.low is None else f"[{percent(side.low)}, {percent(side.high)}] "
        lines.append(_cut(f"  {side.label:<24}{percent(side.ratio):>9}   {span}{side.note}"))
    lines.append("")
    said = [line for sentence in verdict(study) for line in _wrapped(sentence)]
    missing = [line for what in study.missing for line in _wrapped(f"missing: {what}")]
    room = MAX_LINES - len(lines) - len(missing)
    if len(said) > room:
        said = [*said[: max(room - 1, 0)], "- … (all of it in the report: study.save(folder))"]
    return "\n".join([*lines, *said, *missing][:MAX_LINES])


def _wrapped(sentence: str) -> list[str]:
    whole = sentence.replace(" %", "\N{NO-BREAK SPACE}%")  # a number stays with its sign
    lines = textwrap.wrap(whole, _WIDTH, initial_indent="- ", subsequent_indent="  ")
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH + 20 else line[: _WIDTH + 19] + "…"


def _data(study: Any) -> str:
    return "training" if study.task.held_out is None else "held-out"
