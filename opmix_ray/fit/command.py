"""`opmix fit` without the command line around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opmix_ray.decision.problem import check_limits
from opmix_ray.decision.propose import Proposal, check_refits, propose
from opmix_ray.errors import UserError, nearest
from opmix_ray.exchange.column_names import unsaid_notes
from opmix_ray.exchange.columns import Ask, direction_notes, maximised, turned
from opmix_ray.fit.changes import Wholes, read_changes
from opmix_ray.fit.kl import choose_kl, read_kl
from opmix_ray.fit.options import Objective, limits, read_objective, read_prior
from opmix_ray.fit.page import render
from opmix_ray.fit.result import FitResult
from opmix_ray.fit.size_law import fit_sizes, for_target
from opmix_ray.fit.sizes import SizeColumns
from opmix_ray.fit.sweep import LEFT_OUT, Sweep, read_sweep
from opmix_ray.laws import FittedLaw, fit_law
from opmix_ray.laws.fit import law_names
from opmix_ray.laws.fitted import doubts
from opmix_ray.mixture import Mixture
from opmix_ray.storage import Storage

KL = 0.05
BOOTSTRAP = 40  # refits for the intervals
FILES = ("law.json", "mixture.json", "fit.json", "fit.html")


@dataclass(frozen=True)
class Told:
    """Who hears of a fit while it goes on.

    Args:
        say: a line for a person.
        step: what is done, how many of it are, and of how many.
        ask: puts a question to a person; None: nobody is there to answer.
    """

    say: Callable[[str], None] = lambda text: None
    step: Callable[[str, int, int], None] = lambda what, done, total: None
    ask: Ask | None = None


def fit_command(
    ratios: str | Path,
    metrics: str | Path,
    output: str | Path,
    law: str = "auto",
    prior: str | Path | None = None,
    kl: float | str = KL,
    caps: str | Path | None = None,
    bounds: str | Path | None = None,
    objective: str | Path | None = None,
    *,
    share_columns: Sequence[str] | None = None,
    metric_columns: Sequence[str] | None = None,
    maximise: Sequence[str] = (),
    minimise: Sequence[str] = (),
    changes: str | Path | None = None,
    size_column: str | None = None,
    tokens_column: str | None = None,
    target_size: str | float | None = None,
    target_tokens: str | float | None = None,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    told: Told | None = None,
) -> dict[str, Any]:
    """Fit a law to a sweep and propose a mixture; writes `law.json`, `mixture.json`, `fit.json`, `fit.html`.

    Args:
        ratios: CSV of mixtures, one run a line; see `sweep`.
        metrics: CSV of the runs' metrics, lower is better but for those in `maximise`.
        output: directory or URI of the results.
        law: `auto` or a name in `opmix_ray.laws.LAWS`.
        prior: `uniform`, `proportional` or a file with a mixture; none: proportional where the caps file has
            tokens of all domains, else uniform.
        kl: weight of KL(mixture || prior), in units of the objective per nat; `auto`: see `fit.kl`.
        caps: file of greatest shares, or of tokens and epochs; see `options.read_caps`.
        bounds: file of least and greatest shares; see `options.read_bounds`.
        objective: file of metric weights or more; see `options.read_objective`.
        share_columns, metric_columns: names or patterns of the columns that are; None: see `columns`.
        maximise, minimise: names or patterns of metrics that are better when higher, or lower where a name says
            the opposite.
        changes: file of domains that were renamed, split, merged, added or removed since; see `changes`.
        size_column, tokens_column: names of the columns of model sizes and of training tokens; `none`: runs of all
            sizes are one sweep; None: they are found.
        target_size, target_tokens: what the proposal is for, as a number or `410M`; None: the largest.
        bootstrap: refits for the intervals, at least 10; 0: none.
        seed: of everything random.
        told: hears of what is done.

    Returns:
        JSON values: `output`, `law`, `rows`, `target` (`size`, `tokens`, or None), `left_out` (number of rows),
        `columns` (`shares`, `metrics`, `left_out`), `mixture`, `metrics` (by name: `baseline`, `proposal`,
        `maximised`), `objective`, `baseline_objective`, `gain`, `gain_interval`, `quality` (of the objective), `kl`,
        `kl_curve`, `binding`, `notes`, `files`.

    Raises:
        UserError: wrong input; names file, line or key, and the remedy.
    """
    told, given = told or Told(), read_kl(kl)
    check_refits(bootstrap, "--bootstrap")
    if law not in law_names():
        raise UserError("unknown law", key="--law", value=law, remedy=nearest(law, law_names()))
    storage = Storage(str(output))
    sizes = SizeColumns(size_column, tokens_column, target_size, target_tokens, told.ask)
    sweep = read_sweep(ratios, metrics, share_names=share_columns, metric_names=metric_columns, sizes=sizes)
    target = None if sweep.scales is None else sweep.scales.target(target_size, target_tokens)
    if target is not None:
        sweep = for_target(sweep, target)
    removed: list[str] = []
    wholes = Wholes.each(sweep.domains)
    if changes is not None:
        read, before = read_changes(changes), [*sweep.domains, *sweep.unused]
        sweep, removed = read.applied(sweep), read.removed
        wholes = read.wholes(before, sweep)
    lower, upper, held, wanted = _options(sweep, wholes, prior, caps, bounds, objective, removed)
    if given != 0:  # KL to the prior allows no share where it has none
        upper |= {n: lower.get(n, 0.0) for tied in wholes.tied for n in tied if held[n] == 0}
    least, most = wholes.limits(lower, 0.0), wholes.limits(upper, 1.0)
    allowed = {
        name: 0.0 if given != 0 and not held_by else most[name]
        for name, held_by in wholes.mixture(held).items()
    }
    with _named(lower=bounds or prior, upper=caps or bounds or prior):
        check_limits(
            wholes.names, np.eye(len(allowed)), np.array([*least.values()]), np.array([*allowed.values()])
        )
    if given is None and wanted.worst_case:
        raise UserError(
            "cannot be chosen for the worst case, only for a weighted mean",
            key="--kl",
            value=kl,
            remedy="give a number such as 0.05",
        )
    tops = maximised(
        sweep.metric_names,
        sweep.metrics,
        maximise=maximise,
        minimise=minimise,
        decides=_deciding(wanted, sweep.metric_names),
        ask=told.ask,
        file=metrics,
    )
    notes = [*sweep.notes, *direction_notes(tops), *unsaid_notes(sweep.metric_names, {*tops, *minimise})]
    if wanted.reference and tops:
        wanted = replace(
            wanted, reference={n: tops[n] - v if n in tops else v for n, v in wanted.reference.items()}
        )
    for line in taken_words(sweep):
        told.say(line)
    told.say(
        f"fitting {law} to {len(sweep.runs)} runs of {len(sweep.domains)} domains and "
        f"{len(sweep.metric_names)} metrics"
    )
    start = time.perf_counter()
    fit: Callable[..., FittedLaw] = fit_law
    if target is not None and sweep.scales is not None:
        fit = partial(fit_sizes, scales=sweep.scales, target=target)
    with _named(law="--law"):
        fitted = fit(
            wholes.ratios(sweep.ratios),
            turned(sweep.metrics, sweep.metric_names, tops),
            domains=wholes.names,
            metric_names=sweep.metric_names,
            law=law,
            objective=wanted.weights,
            seed=seed,
        )
    notes += doubts(fitted, told=wanted.weights is not None)
    fitted.details |= {"maximised": tops, "unused_domains": sweep.unused}
    middle = time.perf_counter()

    def proposing(law: FittedLaw, **how: Any) -> Proposal:
        with _named(no_worse_than=objective):
            return propose(
                law,
                prior=wholes.mixture(held),
                lower=least,
                upper=most,
                current=None if wanted.current is None else wholes.mixture(wanted.current),
                reference=wanted.reference,
                worst_case=wanted.worst_case,
                no_worse_than=wanted.no_worse_than,
                seed=seed,
                **how,
            )

    curve = None
    if given is None:
        curve = choose_kl(
            fitted,
            lambda half, size: proposing(half, kl=size).mixture,
            seed=seed,
            step=lambda done, total: told.step("proposals for --kl auto", done, total),
        )
        notes.append(curve.words())
    weight = given if curve is None else curve.chosen
    assert weight is not None

    def result(proposal: Proposal) -> FitResult:
        seconds = {"fit": middle - start, "propose": time.perf_counter() - middle}
        law, proposal = wholes.law(fitted), wholes.proposal(proposal, lower, upper)
        return FitResult(
            sweep, law, held, wanted, weight, lower, upper, proposal, notes, inputs, seconds, tops, curve
        )

    files = {
        "prior": prior, "caps": caps, "bounds": bounds, "objective": objective, "changes": changes
    }  # fmt: skip
    inputs = {
        "ratios": str(ratios),
        "metrics": str(metrics),
        "law": law,
        **{name: None if file is None else str(file) for name, file in files.items()},
        "share_columns": None if share_columns is None else list(share_columns),
        "metric_columns": None if metric_columns is None else list(metric_columns),
        "maximise": list(maximise),
        "minimise": list(minimise),
        "target": None if target is None else target.to_dict(),
        "bootstrap": bootstrap,
        "seed": seed,
    }
    proposal = proposing(
        fitted,
        kl=weight,
        bootstrap=bootstrap,
        first=lambda found: told.say(
            first_words(_summary(storage, result(found))) + "\nthe intervals follow"
        ),
        step=lambda done, total: told.step("refits for the intervals", done, total),
    )
    return _write(storage, result(proposal))


@contextmanager
def _named(**given: object) -> Iterator[None]:
    """Errors about these arguments name what a person gave: an option or a file."""
    try:
        yield
    except UserError as error:
        place = given.get(error.key or "")
        if place is None:
            raise
        option = str(place).startswith("--")
        key = str(place) if option else None if error.key in ("lower", "upper") else error.key
        raise UserError(
            error.problem, file=None if option else place, key=key, value=error.value, remedy=error.remedy
        ) from None


def _options(
    sweep: Sweep,
    wholes: Wholes,
    prior: str | Path | None,
    caps: str | Path | None,
    bounds: str | Path | None,
    objective: str | Path | None,
    removed: Sequence[str],
) -> tuple[dict[str, float], dict[str, float], Mixture, Objective]:
    """Least and greatest shares, prior and objective from the files beside a sweep; over the domains with runs."""
    everything = [*sweep.domains, *sweep.unused]
    lower, upper, tokens = limits(bounds, caps, everything)
    for name in sweep.unused:
        if lower.pop(name, 0.0) > 0:
            raise UserError(
                "no run has tried this domain, so nothing is known about it",
                file=bounds,
                key=name,
                remedy="leave out its least share, or add runs that have it",
            )
        upper.pop(name, None)
    left = [name for name in sweep.domains if name not in removed]
    if not left:
        raise UserError("no domain is left", key="--changes", value=", ".join(removed), remedy="keep one")
    for name in removed:
        if lower.get(name, 0.0) > 0:
            raise UserError(
                "is removed and has a least share", file=bounds, key=name, remedy="leave out one of the two"
            )
        if name in sweep.domains:
            upper[name] = 0.0
    held = read_prior(prior, everything, tokens, used=left).over(sweep.domains)
    if wholes.tied and (prior == "uniform" or (prior is None and not set(left) <= set(tokens))):
        there = [name for name, share in wholes.mixture(held).items() if share > 0]
        held = wholes.spread(Mixture.uniform(there), upper=upper)
    return lower, upper, held, read_objective(objective, sweep.metric_names, everything, used=sweep.domains)


def _deciding(objective: Objective, metric_names: Sequence[str]) -> list[str]:
    """Metrics that the proposal depends on."""
    slack = objective.no_worse_than
    if objective.weights is None or (slack is not None and not isinstance(slack, Mapping)):
        return list(metric_names)
    return [n for n in metric_names if objective.weights.get(n, 0) > 0 or (slack is not None and n in slack)]


def _summary(storage: Storage, result: FitResult) -> dict[str, Any]:
    proposal, law = result.proposal, result.law
    base = result.objective.current or result.prior
    ends = result.predicted(np.vstack([base.array(law.domains), proposal.mixture.array(law.domains)]))
    return {
        "output": storage.uri,
        "law": law.name,
        "rows": len(result.sweep.runs),
        "target": law.details.get("target"),
        "left_out": len(result.sweep.left_out),
        "columns": {
            "shares": [*result.sweep.domains, *result.sweep.unused],
            "metrics": result.sweep.metric_names,
            "left_out": [asdict(column) for column in result.sweep.left_out_columns],
        },
        "mixture": result.proposed()["mixture"],
        "metrics": {
            name: {
                "baseline": float(ends[0, m]),
                "proposal": float(ends[1, m]),
                "maximised": name in result.tops,
            }
            for m, name in enumerate(law.metric_names)
        },
        "objective": proposal.objective,
        "baseline_objective": proposal.baseline_objective,
        "gain": proposal.gain,
        "gain_interval": proposal.gain_interval,
        "quality": law.quality["objective"],
        "kl": result.kl,
        "kl_curve": None if result.kl_curve is None else result.kl_curve.to_dict(),
        "binding": proposal.binding,
        "notes": result.notes,
        "files": {name: storage.path(name) for name in FILES},
    }


def _write(storage: Storage, result: FitResult) -> dict[str, Any]:
    storage.write_json("law.json", result.law.to_dict())
    storage.write_json("mixture.json", result.proposed())
    storage.write_json("fit.json", result.to_dict())
    storage.write_text("fit.html", render(result))
    return _summary(storage, result)


SHOWN = 12  # columns named on screen


def taken_words(sweep: Sweep) -> list[str]:
    """Which columns were taken as what, and which were not and why."""
    lines = [
        f"shares:  {_names([*sweep.domains, *sweep.unused])}",
        f"metrics: {_names(sweep.metric_names)}",
    ]
    lines += [note for note in sweep.notes if note.startswith(LEFT_OUT)]
    if gone := [f"{item.run} ({item.reason})" for item in sweep.left_out]:
        lines.append(f"runs left out: {_names(gone, 5)}")
    return lines


def _names(names: Sequence[str], most: int = SHOWN) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_words(summary: Mapping[str, Any]) -> str:
    """The law, the mixture and the gain, before there are intervals."""
    quality = summary["quality"]
    rank = (
        ""
        if quality["spearman_cv"] is None
        else f", rank correlation out of fold {quality['spearman_cv']:.3f}"
    )
    interval = summary["gain_interval"]
    known = "" if interval is None else f" (90 % interval {interval[0]:.4f} to {interval[1]:.4f})"
    left_out = f", {summary['left_out']} rows left out" if summary["left_out"] else ""
    mixture = sorted(summary["mixture"].items(), key=lambda item: -item[1])
    width = max(len(name) for name, _ in mixture)
    raised = [(name, at) for name, at in summary["metrics"].items() if at["maximised"]][:SHOWN]
    return "\n".join(
        [
            f"{summary['law']} on {summary['rows']} runs{left_out}{rank}",
            *(f"  {name:<{width}}  {share:7.4f}" for name, share in mixture),
            f"objective {summary['baseline_objective']:.4f} -> {summary['objective']:.4f}, gain "
            f"{summary['gain']:.4f}{known}",
            *(
                f"{name} {at['baseline']:.4f} -> {at['proposal']:.4f}, higher is better"
                for name, at in raised
            ),
        ]
    )


def closing_words(summary: Mapping[str, Any]) -> str:
    """What `opmix fit` says to a person at its end."""
    notes = [note for note in summary["notes"] if not note.startswith(LEFT_OUT)]  # these were said before
    said = [f"- {said}" for said in [*summary["binding"], *notes]]
    return "\n".join([first_words(summary), *said, summary["files"]["fit.html"]])
