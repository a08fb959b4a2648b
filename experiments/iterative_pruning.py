"""How few weights can pruning in rounds reach, and does the quadratic at w* predict it?

python experiments/iterative_pruning.py                          # FC5 on digits, three seeds
python experiments/iterative_pruning.py --run.model fc12
python experiments/iterative_pruning.py --smoke                  # in seconds, that it runs

Rounds with training: prune by magnitude, go back to w*, train what is left on the data loss alone,
repeat (`pruning.iterative`); they end where the training loss passes L(w*) + ε. The forecast is
`limits.refitted_limit` at w*, the fewest weights of an order whose refitted quadratic is within ε,
and `limits.refitted_rounds`, which orders again after each refit.

Written down before the runs: rounds with training end within 10 % of the forecast by magnitude at
w*, in every seed. If not, the result says what the forecast misses: the remainder (true loss less
the quadratic at the forecast's own weights), or the change of the curvature from w* to there.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxlimit
from jaxlimit import curvature, flatten_weights, limits, pruning, training
from jaxlimit.lab import figures, live, runs
from jaxlimit.lab.console import Stages
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.points import known_or_made
from jaxlimit.lab.settings import TRIAL, RunConfig
from jaxlimit.pruning import retraining

CLAIMED = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare rounds of pruning and training with their forecast."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """Settings of the training, those of `pruning_limit.py`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    num_rounds: int = 18
    """Rounds with training, geometric down to `smallest` of what is alive."""
    smallest: float = 0.01
    epochs: int = 60
    """Of the training in each round."""
    learning_rate: float = 0.02
    """Its first rate, taken to 0 by a cosine."""
    num_steps: int = 60
    """Conjugate gradient steps of a refit, and Lanczos steps of a prediction."""
    every: int = 4
    """Rounds between two measurements of ρ*, certificate and mask."""
    smoke: bool = False
    """A tiny network: shows that the command runs, and nothing else."""
    output: Path = Path("runs/iterative_pruning")

    def retraining(self, seed: int) -> training.TrainingConfig:
        """Return the settings of the training of a round."""
        return training.TrainingConfig(
            epochs=self.epochs, learning_rate=self.learning_rate, schedule="cosine", seed=seed,
            batch_size=self.run.training.batch_size,
        )  # fmt: skip


def forecast(part: live.Live, config: Config) -> dict[str, Any]:
    """Forecast at w* how few weights are enough once refitted, by each order."""
    operator, gradient, weights, diagonal = live.quadratic(part, part.net.trained.params)
    scores = pruning.saliency(weights, gradient, diagonal)
    args, found = (operator, gradient, weights, part.epsilon), {}
    for name, ranks in {"magnitude": None, "saliency": pruning.order_by(scores)}.items():
        limit = limits.refitted_limit(*args, ranks=ranks, num_steps=config.num_steps)
        ranks = pruning.order_by(jnp.abs(weights)) if ranks is None else ranks
        kept = ranks < limit.num_kept
        refit = limits.refit(*args[:3], kept, num_steps=config.num_steps)
        found[name] = check(part, operator, weights, refit.weights, float(refit.rise))
        found[name] |= {"num_kept": limit.num_kept, "residual": float(refit.residual)}
    rounds = limits.refitted_rounds(*args, diagonal=diagonal, num_steps=config.num_steps)
    found["rounds"] = check(part, operator, weights, rounds.weights, rounds.rise)
    found["rounds"] |= {"num_kept": rounds.num_kept, "history": rounds.history}
    return found


def check(part: live.Live, operator: Any, weights: Any, refitted: Any, rise: float) -> dict:
    """Compare a refitted quadratic with the true loss, also in curvature."""
    params = flatten_weights(part.net.trained.params)[1](refitted)
    move = refitted - weights
    there = curvature.gauss_newton_matvec(*part.at(params))
    before, after = (float(jnp.vdot(move, matvec(move))) for matvec in (operator, there))
    true = part.loss(params) - (part.limit - part.epsilon)
    return {
        "rise": rise,
        "true_rise": true,
        "remainder": (true - rise) / part.epsilon,
        "drift": after / before if before > 0 else 1.0,
    }


def rounds(part: live.Live, config: Config, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Prune and train in rounds; measure the loss in each, and the limits in some."""
    net = part.net
    found = retraining.iterative(
        net.module, net.train, config.retraining(seed), config.smallest,
        num_rounds=config.num_rounds, rewind_epoch=0, start=net.trained, checkpoint_dir=folder,
    )  # fmt: skip
    rows = []
    for i, network in enumerate(found):
        row = {
            "num_kept": int(sum(np.sum(leaf) for leaf in jax.tree.leaves(network.mask))),
            "loss": part.loss(network.params),
            "accuracy": part.accuracy(network.params),
        }
        left = part.limit - row["loss"]
        if i % config.every == 0 and left > 0:
            key = jax.random.fold_in(jax.random.key(seed), i)
            row |= live.sides(part, network.params, left, key)
            row["predicted"] = live.predicted(part, network.params, left, key, config.num_steps)
        rows.append(row)
    return rows


def analyse(config: Config, seed: int, stages: Stages) -> dict[str, Any]:
    """Forecast and run the rounds of one seed; each part is kept when it is done."""
    folder = config.output / config.run.name() / f"seed-{seed}"
    net = runs.train(config.run, seed, folder, stages)
    key = jax.random.fold_in(jax.random.key(seed), 4)
    part = live.cut(net, key)
    params = part.net.trained.params
    told = dataclasses.replace(config, seeds=(), output=Path())

    def known(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with stages.time(name):
            path = config.output / "points" / f"{config.run.model}-{seed}-{name}.json"
            return known_or_made(path, {"config": told, "seed": seed}, make)

    found = {
        "forecast": known("forecast", lambda: forecast(part, config)),
        "one_shot": known("one-shot", lambda: live.sides(part, params, part.epsilon, key)),
        "refits": known("refits", lambda: refits(part, key)),
        "rounds": known("rounds", lambda: {
            "rows": rounds(part, config, seed, folder / "rounds")})["rows"],
    }  # fmt: skip
    rows = found["rounds"]
    return found | {
        "seed": seed, "dim": part.dim, "epsilon": part.epsilon, "limit": part.limit,
        "num_live": flatten_weights(params)[0].size, "accuracy": part.accuracy(params),
        "end": live.crossing([r["num_kept"] for r in rows], [r["loss"] for r in rows], part.limit),
    }  # fmt: skip


def refits(part: live.Live, key: Any) -> dict[str, Any]:
    """Prune in rounds with refits of the true loss."""
    found = jaxlimit.prune_to(
        *part.problem, epsilon=part.epsilon, key=key, refit=True, methods=live.METHODS
    )
    return {"history": found.rounds, "num_kept": found.rounds[-1],
            "accuracy": part.accuracy(found.params)}  # fmt: skip


def conclude(results: list[dict[str, Any]]) -> str:
    """Say whether the claim held, and what failed if not."""
    ratios = [r["end"] / r["forecast"]["magnitude"]["num_kept"] for r in results]
    held = all(abs(ratio - 1) <= CLAIMED for ratio in ratios)
    remainder, drift = (
        [r["forecast"]["magnitude"][name] for r in results] for name in ("remainder", "drift")
    )
    return (
        f"Rounds with training end at {span(ratios, '.2f')} times the forecast by magnitude "
        f"(claimed: 0.9 to 1.1 in every seed; the claim {'holds' if held else 'fails'}). At the "
        f"forecast's own weights the remainder is {span(remainder, '.1f')} ε, and the curvature "
        f"along the way there is {span(drift, '.2g')} times that at w*."
    )


def span(values: list[float], form: str) -> str:
    """Show the least and the greatest."""
    return f"{min(values):{form}} to {max(values):{form}}"


def tabulate(results: list[dict[str, Any]]) -> str:
    """Lay out what is kept, a row a seed."""
    share = lambda r, count: f"{count / r['dim']:.3%}"  # noqa: E731
    of = {
        "one shot, magnitude": lambda r: r["one_shot"]["magnitude"],
        "one shot, found": lambda r: r["one_shot"]["found"],
        "one shot, certified": lambda r: r["one_shot"]["certified"],
        "forecast, magnitude": lambda r: r["forecast"]["magnitude"]["num_kept"],
        "forecast, saliency": lambda r: r["forecast"]["saliency"]["num_kept"],
        "forecast, rounds on the quadratic": lambda r: r["forecast"]["rounds"]["num_kept"],
        "rounds with training": lambda r: r["end"],
        "rounds with refits of the loss": lambda r: r["refits"]["num_kept"],
    }
    columns = {"kept": list(of)}
    columns |= {f"seed {r['seed']}": [share(r, get(r)) for get in of.values()] for r in results}
    return markdown_table(columns)


def main(config: Config) -> None:
    """Run every seed, write, draw, and say what came out."""
    if not config.seeds:
        raise ValueError("seeds must name at least one, got none")
    if config.smoke:
        config = dataclasses.replace(config, run=TRIAL, seeds=config.seeds[:1], num_rounds=3,
                                     epochs=2, num_steps=4, smallest=0.05)  # fmt: skip
    with Stages() as stages:
        results = [analyse(config, seed, stages) for seed in config.seeds]
    sentence, table = conclude(results), tabulate(results)
    drawn = {"iterative_pruning.png": figures.plot_iterative(results[0])}
    path = config.output / "result.json"
    finish(path, config, sentence, table=table, figures=drawn, results=results)


if __name__ == "__main__":
    main(tyro.cli(Config))
