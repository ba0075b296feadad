"""Which mixtures a sweep should train: regret of few designed runs against many random ones.

Nobody can train every design on every problem, so what a run would have come to is read off a law fitted to all runs
that were trained (RegMix's 768, olmix's 127, and the 24 or more mixtures of each kept problem). Each made measurement
gets the error that this law made out of fold on one of those runs: noise as it was measured, and larger where a problem
has few runs. To the made sweep a Gaussian process on log shares is fitted: most of what `opmix fit` fits, and
hundreds of times as fast. Regret is what the best of its predictions among many mixtures loses against their best,
KL of `opmix fit` counted, in per cent of the loss.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import gamma, qmc

from opmix_ray.decision.propose import propose
from opmix_ray.fit.sweep import read_sweep
from opmix_ray.laws import FittedLaw, fit_law
from opmix_ray.mixture import Mixture
from opmix_ray.strategies.design import CONCENTRATION, EPS, designed, sample_mixtures
from problem_bench.problem import BUILT, Problem, as_array, names

FIDELITY = Path(__file__).parents[1] / "results" / "fidelity"
KL = 0.05
RANDOM = 128  # runs of the sweep that designs are compared with
SIZES = (16, 24, 32)
Rows = np.ndarray
Design = Callable[[Mixture, int, int], Rows]  # centre, runs, seed


class Process:
    """A Gaussian process on log shares, its constants by marginal likelihood from a small grid.

    Args:
        rows: (n, D) mixtures.
        values: (n,) measured.
    """

    def __init__(self, rows: Rows, values: np.ndarray) -> None:
        self.middle = np.log(rows + EPS).mean(axis=0)
        points = np.log(rows + EPS) - self.middle
        self.unit = np.sqrt((points**2).sum(axis=1).mean()) + 1e-9
        self.points, self.level, self.spread = points / self.unit, values.mean(), values.std() + 1e-12
        asked, best = (values - self.level) / self.spread, -np.inf
        for length, linear, noise in product((1.0, 2.0, 4.0), (0.1, 1.0), (0.01, 0.05, 0.2)):
            kernel = self._kernel(self.points, length, linear)
            factor = np.linalg.cholesky(kernel + noise * np.eye(len(rows)))
            solved = np.linalg.solve(factor, asked)
            likelihood = -0.5 * len(rows) * np.log(solved @ solved) - np.log(np.diag(factor)).sum()
            if likelihood > best:
                best, self.kind = likelihood, (length, linear)
                self.weights = np.linalg.solve(factor.T, solved)

    def _kernel(self, points: Rows, length: float, linear: float) -> np.ndarray:
        distance = ((points[:, None] - self.points[None]) ** 2).sum(axis=2)
        return np.exp(-distance / (2 * length**2)) + linear * points @ self.points.T + 0.5

    def __call__(self, rows: Rows) -> np.ndarray:
        """(m, D) -> (m,)."""
        points = (np.log(rows + EPS) - self.middle) / self.unit
        return self._kernel(points, *self.kind) @ self.weights * self.spread + self.level


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

    def __init__(
        self,
        name: str,
        chosen: bool,
        law: FittedLaw,
        errors: np.ndarray,
        centre: Mixture,
        runs: Rows | None = None,
    ) -> None:
        self.name, self.chosen, self.law, self.centre, self.runs = name, chosen, law, centre, runs
        self.all_errors = np.nan_to_num(errors - np.nanmean(errors, axis=0))
        self.errors = self.all_errors @ law.weights
        rng, size = np.random.default_rng(5), len(centre)
        around = as_rows(sample_mixtures(centre, 1200, (0.3, 30.0), 5))
        self.pool = np.vstack([centre.array()[None], around, rng.dirichlet(np.ones(size), 300)])
        for width in (20.0, 80.0):  # and near the best of them
            best = self.pool[np.argsort(self.penalised(self.pool))[:5]]
            self.pool = np.vstack(
                [self.pool, *(rng.dirichlet(width * size * one + 0.05, 100) for one in best)]
            )
        self.worth = self.penalised(self.pool)
        self.level = abs(float(law.objective(self.pool[self.worth.argmin()])[0]))

    def distance(self, rows: Rows) -> np.ndarray:
        """KL to the centre (n,)."""
        return (rows * np.log(np.maximum(rows, 1e-12) / self.centre.array())).sum(axis=1)

    def penalised(self, rows: Rows) -> np.ndarray:
        """What is minimised, by the law of all runs (n,)."""
        return self.law.objective(rows) + KL * self.distance(rows)

    def measured(self, rows: Rows, seed: int) -> np.ndarray:
        """The objective of made runs (n,)."""
        which = np.random.default_rng([seed, 12]).integers(len(self.errors), size=len(rows))
        return self.law.objective(rows) + self.errors[which]

    def proposed(self, rows: Rows, values: np.ndarray) -> int:
        """Place in the pool of the mixture that a made sweep leads to."""
        return int((Process(rows, values)(self.pool) + KL * self.distance(self.pool)).argmin())

    def regret(self, rows: Rows, values: np.ndarray) -> float:
        """Of that mixture, in per cent of the loss."""
        return 100 * float(self.worth[self.proposed(rows, values)] - self.worth.min()) / self.level

    def by_fit(self, rows: Rows, seed: int) -> float:
        """Regret of what the law of `opmix fit` proposes after made runs, in per cent of the loss."""
        law = self.law
        which = np.random.default_rng([seed, 12]).integers(len(self.errors), size=len(rows))
        values = law.predict(rows) + self.all_errors[which]
        weights = dict(zip(law.metric_names, law.weights.tolist(), strict=True))
        fitted = fit_law(rows, values, domains=law.domains, metric_names=law.metric_names, objective=weights)
        found = propose(fitted, prior=self.centre, kl=KL).mixture.array()[None]
        return 100 * float(self.penalised(found)[0] - self.worth.min()) / self.level

    def random(self, seed: int) -> float:
        """Regret of 128 runs of the sweep's own distribution."""
        if self.runs is not None:
            rows = self.runs[np.random.default_rng([seed, 7]).permutation(len(self.runs))[:RANDOM]]
        else:
            rows = as_rows(sample_mixtures(self.centre, RANDOM, CONCENTRATION, 1000 + seed))
        return self.regret(rows, self.measured(rows, seed))

    def designed(self, design: Design, count: int, seed: int) -> float:
        """Regret of designed runs."""
        rows = design(self.centre, count, seed)
        return self.regret(rows, self.measured(rows, seed))

    def in_three(self, count: int, seed: int) -> float:
        """Regret of a design of half of the runs, a quarter near what these lead to, and again a quarter."""
        rows = as_rows(designed(count // 2, self.centre, seed=seed))
        values = self.measured(rows, seed)
        for more in (count // 4, count - count // 2 - count // 4):
            before = [Mixture.from_array(self.centre.domains, row) for row in rows]
            best = Mixture.from_array(self.centre.domains, self.pool[self.proposed(rows, values)])
            new = as_rows(designed(more, best, near=True, earlier=before, seed=seed + len(rows)))
            values = np.append(values, self.measured(new, seed + len(rows)))
            rows = np.vstack([rows, new])
        return self.regret(rows, values)


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
    points = np.clip(qmc.Sobol(size + 1, seed=seed).random_base2(6)[:count], 1e-6, 1 - 1e-6)
    low, high = np.log(CONCENTRATION)
    alpha = np.exp(low + points[:, -1:] * (high - low)) * size * centre.array()
    drawn = gamma.ppf(points[:, :size], np.maximum(alpha, 1e-2)) + 1e-12
    return drawn / drawn.sum(axis=1, keepdims=True)


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
    """`opmix design`, which fills the space: each mixture as far as can be from those before it (maximin)."""
    return as_rows(designed(count, centre, seed=seed))


DESIGNS: dict[str, Design] = {
    "random, c from .5 to 5": drawn,
    "random, c = .3": dirichlet(0.3),
    "random, c = 1": dirichlet(1.0),
    "random, c = 3": dirichlet(3.0),
    "quasi-random": quasi_random,
    "D-optimal, log shares": d_optimal,
    "centre and halfway to corners": corners,
    "opmix design": of_the_product,
}
IN_THREE = "opmix design, then twice --near"


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
    law, errors = _law("RegMix", rows, values, train.domains, dict.fromkeys(metrics, 1.0))
    for number in range(4):
        some = np.sort(rng.permutation(len(metrics))[:5]) if number else np.arange(len(metrics))
        part = FittedLaw(
            law.name, train.domains, [metrics[m] for m in some], np.full(len(some), 1 / len(some)),
            [law.responses[m] for m in some],
        )  # fmt: skip
        name = f"RegMix {number}"
        yield Table(name, True, part, errors[:, some], _mean(train.domains, rows), rows)


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


def compare_by_fit(data: Path | None, seeds: Sequence[int], count: int = 32) -> str:
    """The same with the law of `opmix fit` and its proposal: 128 random runs, designed ones, as many random ones."""
    found = []
    for table in tables(data):
        mine = []
        for seed in seeds:
            own = as_rows(sample_mixtures(table.centre, RANDOM, CONCENTRATION, 1000 + seed))
            if table.runs is not None:
                own = table.runs[np.random.default_rng([seed, 7]).permutation(len(table.runs))[:RANDOM]]
            rows = (own, of_the_product(table.centre, count, seed), drawn(table.centre, count, seed))
            mine.append([table.by_fit(each, seed) for each in rows])
        found.append(np.mean(mine, axis=0))
        print(f"{table.name}: " + ", ".join(f"{one:.3f} %" for one in found[-1]), flush=True)
    names = (f"{RANDOM} random runs", f"{count} of opmix design", f"{count} random ones")
    return "median: " + ", ".join(
        f"{name} {one:.3f} %" for name, one in zip(names, np.median(found, axis=0), strict=True)
    )


def _table(
    name: str, chosen: bool, rows: Rows, values: np.ndarray, domains: Sequence[str],
    weights: dict[str, float], centre: Mixture, own: bool = False,
) -> Table:  # fmt: skip
    rows = rows / rows.sum(axis=1, keepdims=True)
    law, errors = _law(name, rows, values, domains, weights)
    return Table(name, chosen, law, errors, centre, rows if own else None)


def _law(
    name: str, rows: Rows, values: np.ndarray, domains: Sequence[str], weights: dict[str, float]
) -> tuple[FittedLaw, np.ndarray]:
    """The law of all runs and its errors out of fold (N, M); kept in `runs/`, since it takes minutes."""
    file = BUILT / "sweeps" / f"{name}.json"
    if not file.exists():
        law = fit_law(rows, values, domains=domains, metric_names=list(weights), objective=weights)
        assert law.held_out is not None
        assert law.table is not None
        errors = law.table.metrics - law.held_out[:, : values.shape[1]]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"law": law.to_dict(), "errors": errors.tolist()}))
    kept = json.loads(file.read_text())
    law = FittedLaw.from_dict(kept["law"])
    law.direct = None
    return law, np.array(kept["errors"])


def compare(
    data: Path | None,
    seeds: Sequence[int],
    sizes: Sequence[int] = SIZES,
    designs: Sequence[str] = (*DESIGNS, IN_THREE),
) -> str:
    """Regret by design, over the tables that constants were chosen on and over the others."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    chosen: dict[str, bool] = {}
    for table in tables(data):
        chosen[table.name] = table.chosen
        mine = found[table.name] = {("", RANDOM): float(np.mean([table.random(seed) for seed in seeds]))}
        for design in designs:
            for size in sizes:
                one = table.in_three if design == IN_THREE else None
                values = [
                    one(size, seed) if one is not None else table.designed(DESIGNS[design], size, seed)
                    for seed in seeds
                ]
                mine[design, size] = float(np.mean(values))
        last = ", ".join(f"{mine[designs[-1], size]:.3f} %" for size in sizes)
        print(
            f"{table.name}: {RANDOM} random runs {mine['', RANDOM]:.3f} %; {designs[-1]} {last}", flush=True
        )
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
