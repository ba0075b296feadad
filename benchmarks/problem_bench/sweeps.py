"""Which mixtures a sweep should train: regret of few designed runs against many random ones.

Nobody can train every design on every problem, so what a run would have come to is read off a law fitted to all runs
that were trained (RegMix's 768, olmix's 127, and the 24 or more mixtures of each kept problem). Each made measurement
gets the errors that this law made out of fold on one of those runs, for all metrics at once: noise as it was measured,
and larger where a problem has few runs. `opmix fit`'s law (`auto`, KL .05) is fitted to the made sweep and proposes a
mixture. Regret is what that loses against the mixture that the law of all runs proposes, KL counted, in per cent of the
loss.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import gamma, qmc

from opmix_ray.decision.propose import propose
from opmix_ray.fit.sweep import read_sweep
from opmix_ray.laws import FittedLaw, fit_law
from opmix_ray.mixture import Mixture
from opmix_ray.strategies.design import CONCENTRATION, EPS, designed, sample_mixtures
from problem_bench.problem import Problem, as_array, names

FIDELITY = Path(__file__).parents[1] / "results" / "fidelity"
KL = 0.05
RANDOM = 128  # runs of the sweep that designs are compared with
SIZES = (16, 24, 32)
Rows = np.ndarray
Design = Callable[[Mixture, int, int], Rows]  # centre, runs, seed


@dataclass
class Table:
    """A problem whose runs can be made.

    Args:
        name: of it.
        chosen: whether constants were chosen on it; else they are judged on it.
        law: fitted to all runs.
        errors: (N, M) of the law, out of fold.
        centre: proportional mixture.
        runs: (N, D) the sweep's own mixtures, where it had its own distribution.
    """

    name: str
    chosen: bool
    law: FittedLaw
    errors: np.ndarray
    centre: Mixture
    runs: Rows | None = None
    best: float = field(init=False)
    level: float = field(init=False)

    def __post_init__(self) -> None:
        found = [self.proposed(self.law, seed) for seed in range(2)]
        self.best = min(self.penalised(mixture) for mixture in found)
        self.level = abs(float(self.law.objective(found[0].array())[0]))

    def proposed(self, law: FittedLaw, seed: int = 0) -> Mixture:
        """What a law proposes."""
        return propose(law, prior=self.centre, kl=KL, seed=seed).mixture

    def penalised(self, mixture: Mixture) -> float:
        """What is minimised, by the law of all runs."""
        return float(self.law.objective(mixture.array())[0]) + KL * mixture.kl(self.centre)

    def measured(self, rows: Rows, seed: int) -> np.ndarray:
        """Metrics of made runs (n, M)."""
        which = np.random.default_rng([seed, 12]).integers(len(self.errors), size=len(rows))
        return self.law.predict(rows) + self.errors[which]

    def fitted(self, rows: Rows, values: np.ndarray) -> FittedLaw:
        """The law of a sweep."""
        law = self.law
        weights = dict(zip(law.metric_names, law.weights.tolist(), strict=True))
        return fit_law(rows, values, domains=law.domains, metric_names=law.metric_names, objective=weights)

    def regret(self, law: FittedLaw) -> float:
        """Of what a law proposes, in per cent of the loss."""
        return 100 * (self.penalised(self.proposed(law)) - self.best) / self.level

    def random(self, seed: int) -> float:
        """Regret of 128 runs of the sweep's own distribution."""
        if self.runs is not None:
            rows = self.runs[np.random.default_rng([seed, 7]).permutation(len(self.runs))[:RANDOM]]
        else:
            rows = as_rows(sample_mixtures(self.centre, RANDOM, CONCENTRATION, 1000 + seed))
        return self.regret(self.fitted(rows, self.measured(rows, seed)))

    def designed(self, design: Design, count: int, seed: int) -> float:
        """Regret of designed runs."""
        rows = design(self.centre, count, seed)
        return self.regret(self.fitted(rows, self.measured(rows, seed)))

    def in_two(self, count: int, seed: int) -> float:
        """Regret of a design of half of the runs, and the others near the mixture that its law proposes."""
        first = as_rows(designed(count // 2, self.centre, seed=seed))
        values = self.measured(first, seed)
        best = self.proposed(self.fitted(first, values))
        before = [Mixture.from_array(self.law.domains, row) for row in first]
        more = as_rows(designed(count - len(first), best, near=True, earlier=before, seed=seed))
        again = np.vstack([values, self.measured(more, 100 + seed)])
        return self.regret(self.fitted(np.vstack([first, more]), again))


def as_rows(mixtures: Sequence[Mixture]) -> Rows:
    """Mixtures as an array (n, D)."""
    return np.array([mixture.array() for mixture in mixtures])


def dirichlet(concentration: float) -> Design:
    """Random mixtures of one concentration."""
    return lambda centre, count, seed: as_rows(
        sample_mixtures(centre, count, (concentration, concentration), seed)
    )


def drawn(centre: Mixture, count: int, seed: int) -> Rows:
    """Random mixtures of many concentrations, as RegMix draws them."""
    return as_rows(sample_mixtures(centre, count, CONCENTRATION, seed))


def quasi_random(centre: Mixture, count: int, seed: int) -> Rows:
    """The same, from Sobol's points instead of random numbers."""
    size = len(centre)
    points = np.clip(qmc.Sobol(size + 1, seed=seed).random(count), 1e-6, 1 - 1e-6)
    low, high = np.log(CONCENTRATION)
    alpha = np.exp(low + points[:, -1:] * (high - low)) * size * centre.array()
    drawn = gamma.ppf(points[:, :size], np.maximum(alpha, 1e-2)) + 1e-12
    return drawn / drawn.sum(axis=1, keepdims=True)


def space_filling(centre: Mixture, count: int, seed: int) -> Rows:
    """Each mixture as far as can be from those before it (maximin), by logarithms of shares."""
    pool = np.vstack([centre.array(), drawn(centre, 1000, seed)])
    points = np.log(pool + EPS)
    picks = [0]
    away = ((points - points[0]) ** 2).sum(axis=1)
    while len(picks) < count:
        picks.append(int(away.argmax()))
        away = np.minimum(away, ((points - points[picks[-1]]) ** 2).sum(axis=1))
    return pool[picks]


def d_optimal(centre: Mixture, count: int, seed: int) -> Rows:
    """Each mixture as far as can be from being told by those before it under a law linear in log shares."""
    pool = np.vstack([centre.array(), drawn(centre, 1000, seed)])
    points = np.column_stack([np.ones(len(pool)), np.log(pool + EPS)])
    picks, inverse = [0], np.eye(points.shape[1]) * 100
    while True:
        last = inverse @ points[picks[-1]]
        inverse = inverse - np.outer(last, last) / (1 + points[picks[-1]] @ last)
        if len(picks) == count:
            return pool[picks]
        picks.append(int(np.einsum("nd,de,ne->n", points, inverse, points).argmax()))


def corners(centre: Mixture, count: int, seed: int) -> Rows:
    """The centre, halfway from there to each domain, then to pairs of domains."""
    rng, size = np.random.default_rng(seed), len(centre)
    ends = [np.eye(size)[place] for place in rng.permutation(size)]
    while len(ends) < count:
        ends.append(np.eye(size)[rng.choice(size, 2, replace=False)].mean(axis=0))
    return np.vstack([centre.array(), [0.5 * centre.array() + 0.5 * end for end in ends]])[:count]


def of_the_product(centre: Mixture, count: int, seed: int) -> Rows:
    """`opmix design`."""
    return as_rows(designed(count, centre, seed=seed))


DESIGNS: dict[str, Design] = {
    "random, c from .5 to 5": drawn,
    "random, c = .3": dirichlet(0.3),
    "random, c = 1": dirichlet(1.0),
    "random, c = 3": dirichlet(3.0),
    "quasi-random": quasi_random,
    "space-filling": space_filling,
    "D-optimal, log shares": d_optimal,
    "centre and halfway to corners": corners,
    "opmix design": of_the_product,
}
IN_TWO = "half, then near its law's mixture"


def tables(data: Path | None) -> Iterator[Table]:
    """Every problem; those of public sweeps where their files are."""
    for name in names():
        kept = Problem.load(name).kept()
        runs = next((seed["runs"] for seed in kept["seeds"].values() if seed["runs"]), None)
        if runs is None:
            continue
        domains, end = kept["domains"], max(runs[0]["losses"], key=int)
        weights = {metric: weight for metric, weight in kept["objective"].items() if weight}
        rows = np.array([as_array(run["mixture"], domains) for run in runs])
        values = np.array([[run["losses"][end][metric] for metric in weights] for run in runs])
        centre = Mixture.proportional({domain: kept["tokens"][domain] for domain in domains})
        yield _table(name, name.endswith("-a"), rows, values, domains, weights, centre)
    for name in ("text-0", "shipped-1"):
        kept = json.loads(gzip.decompress((FIDELITY / f"{name}.json.gz").read_bytes()))
        domains = kept["domains"]
        runs = [run for run in kept["truth"] if "500" in run["losses"]]
        rows = np.array([as_array(run["mixture"], domains) for run in runs])
        values = np.array([[run["losses"]["500"][domain] for domain in domains] for run in runs])
        even = dict.fromkeys(domains, 1.0)
        yield _table(name, name == "text-0", rows, values, domains, even, Mixture.uniform(domains))
    if data is not None:
        yield from _regmix(data / "regmix")
        yield from _olmix(data / "olmix")


def _regmix(data: Path) -> Iterator[Table]:
    """RegMix's runs: all losses, and three times five of them."""
    train = read_sweep(data / "train_mixture_1m.csv", data / "train_pile_loss_1m.csv")
    test = read_sweep(data / "test_mixture_1m.csv", data / "test_pile_loss_1m.csv")
    rows, values = np.vstack([train.ratios, test.ratios]), np.vstack([train.metrics, test.metrics])
    rng, metrics = np.random.default_rng(3), train.metric_names
    whole = _table(
        "RegMix",
        True,
        rows,
        values,
        train.domains,
        dict.fromkeys(metrics, 1.0),
        _mean(train.domains, rows),
        own=True,
    )
    yield whole
    for number in range(3):
        five = np.sort(rng.permutation(len(metrics))[:5])
        law = FittedLaw(
            whole.law.name, train.domains, [metrics[m] for m in five], np.full(5, 0.2),
            [whole.law.responses[m] for m in five],
        )  # fmt: skip
        yield Table(f"RegMix {number}", True, law, whole.errors[:, five], whole.centre, rows)


def _olmix(data: Path) -> Iterator[Table]:
    """olmix's runs: five times ten of its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"dclm_{part}.csv" for part in ("ratios", "metrics")]
        for file in files:
            file.write_bytes(gzip.decompress((data / f"{file.name}.gz").read_bytes()))
        sweep = read_sweep(*files)
    rng = np.random.default_rng(1)
    for number in range(5):
        ten = np.sort(rng.permutation(len(sweep.metric_names))[:10])
        even = {sweep.metric_names[m]: 1.0 for m in ten}
        centre = _mean(sweep.domains, sweep.ratios)
        yield _table(
            f"olmix {number}",
            False,
            sweep.ratios,
            sweep.metrics[:, ten],
            sweep.domains,
            even,
            centre,
            own=True,
        )


def _mean(domains: Sequence[str], rows: Rows) -> Mixture:
    return Mixture.from_array(domains, rows.mean(axis=0))


def _table(
    name: str, chosen: bool, rows: Rows, values: np.ndarray, domains: Sequence[str],
    weights: dict[str, float], centre: Mixture, own: bool = False,
) -> Table:  # fmt: skip
    rows = rows / rows.sum(axis=1, keepdims=True)
    law = fit_law(rows, values, domains=domains, metric_names=list(weights), objective=weights)
    assert law.held_out is not None
    assert law.table is not None
    errors = law.table.metrics - law.held_out[:, : values.shape[1]]
    errors = np.nan_to_num(errors - np.nanmean(errors, axis=0))
    plain = FittedLaw(law.name, law.domains, law.metric_names, law.weights, law.responses)
    return Table(name, chosen, plain, errors, centre, rows if own else None)


def compare(
    data: Path | None,
    seeds: Sequence[int],
    sizes: Sequence[int] = SIZES,
    designs: Sequence[str] = (*DESIGNS, IN_TWO),
    say: Callable[[str], None] = print,
) -> str:
    """Regret by design, over the tables that constants were chosen on and over the others."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    chosen: dict[str, bool] = {}
    for table in tables(data):
        chosen[table.name] = table.chosen
        mine = found[table.name] = {("", RANDOM): float(np.mean([table.random(seed) for seed in seeds]))}
        for design in designs:
            for size in sizes:
                one = table.in_two if design == IN_TWO else None
                values = [
                    one(size, seed) if one is not None else table.designed(DESIGNS[design], size, seed)
                    for seed in seeds
                ]
                mine[design, size] = float(np.mean(values))
        say(f"{table.name}: {RANDOM} random runs {mine['', RANDOM]:.3f} %, "
            + ", ".join(f"{mine[designs[-1], size]:.3f} %" for size in sizes))  # fmt: skip
    lines = [f"{'':32s} {'runs':>4s} {'chosen on':>10s} {'judged on':>10s} {'no worse':>9s}"]
    for design, size in next(iter(found.values())):
        label = design or "random, the sweep's own"
        on, off = (
            [mine[design, size] for name, mine in found.items() if chosen[name] is half]
            for half in (True, False)
        )
        better = [mine[design, size] <= mine["", RANDOM] for name, mine in found.items() if not chosen[name]]
        lines.append(
            f"{label:32s} {size:4d} {np.median(on):9.3f}% {np.median(off):9.3f}% {sum(better):3d} of {len(better)}"
        )
    return "\n".join(lines)
