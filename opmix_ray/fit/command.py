"""`opmix fit` and `opmix predict` without the command line around them."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from opmix_ray.decision.propose import propose
from opmix_ray.errors import UserError
from opmix_ray.fit.csv_table import read_csv
from opmix_ray.fit.options import read_bounds, read_caps, read_objective, read_prior
from opmix_ray.fit.page import render
from opmix_ray.fit.result import FitResult
from opmix_ray.fit.sweep import METADATA, Sweep, read_mixtures, read_sweep
from opmix_ray.laws import FittedLaw, fit_law
from opmix_ray.laws.base import nearest
from opmix_ray.storage import Storage

FORMAT = 1
KL = 0.05
BOOTSTRAP = 40  # refits for the intervals


def fit_command(
    ratios: str | Path,
    metrics: str | Path,
    output: str | Path,
    law: str = "auto",
    prior: str | Path | None = None,
    kl: float = KL,
    caps: str | Path | None = None,
    bounds: str | Path | None = None,
    objective: str | Path | None = None,
    *,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit a law to a sweep and propose a mixture; writes `law.json`, `mixture.json`, `fit.json`, `fit.html`.

    Args:
        ratios: CSV of mixtures, one run a line; see `sweep`.
        metrics: CSV of the runs' metrics, lower is better.
        output: directory or URI of the results.
        law: `auto` or a name in `opmix_ray.laws.LAWS`.
        prior: `uniform`, `proportional` or a file with a mixture; none: proportional where the caps file has
            tokens of all domains, else uniform.
        kl: weight of KL(mixture || prior), in units of the objective per nat.
        caps: file of greatest shares, or of tokens and epochs; see `options.read_caps`.
        bounds: file of least and greatest shares; see `options.read_bounds`.
        objective: file of metric weights or more; see `options.read_objective`.
        bootstrap: refits for the intervals; 0: none.
        seed: of everything random.

    Returns:
        JSON values: `output`, `law`, `rows`, `left_out` (number of rows), `mixture`, `objective`,
        `baseline_objective`, `gain`, `gain_interval`, `quality` (of the objective), `binding`, `notes`, `files`.

    Raises:
        UserError: wrong input; names file, line or key, and the remedy.
    """
    storage = Storage(str(output))
    sweep = read_sweep(ratios, metrics)
    domains = sweep.domains
    read = read_caps(caps, domains)
    lower, upper = read_bounds(bounds, domains)
    for name, cap in read.upper.items():
        upper[name] = min(cap, upper.get(name, 1.0))
        if lower.get(name, 0.0) > upper[name] + 1e-9:
            raise UserError(
                f"the least share {lower[name]:.4g} is above the greatest that the caps allow, {upper[name]:.4g}",
                file=bounds,
                key=name,
                remedy="lower it, or raise the cap",
            )
    held = read_prior(prior, domains, read.tokens)
    wanted = read_objective(objective, sweep.metric_names, domains)
    notes = list(sweep.notes)
    _unseen(sweep, lower, upper, notes)
    start = time.perf_counter()
    fitted = fit_law(
        sweep.ratios,
        sweep.metrics,
        domains=domains,
        metric_names=sweep.metric_names,
        law=law,
        objective=wanted.weights,
        seed=seed,
    )
    middle = time.perf_counter()
    proposal = propose(
        fitted,
        prior=held,
        kl=kl,
        lower=lower,
        upper=upper,
        current=wanted.current,
        reference=wanted.reference,
        worst_case=wanted.worst_case,
        no_worse_than=wanted.no_worse_than,
        seed=seed,
        bootstrap=bootstrap,
    )
    seconds = {"fit": middle - start, "propose": time.perf_counter() - middle}
    inputs = {
        "ratios": str(ratios),
        "metrics": str(metrics),
        "law": law,
        "prior": None if prior is None else str(prior),
        "caps": None if caps is None else str(caps),
        "bounds": None if bounds is None else str(bounds),
        "objective": None if objective is None else str(objective),
        "bootstrap": bootstrap,
        "seed": seed,
    }
    result = FitResult(sweep, fitted, held, wanted, kl, lower, upper, proposal, notes, inputs, seconds)
    return _write(storage, result)


def _unseen(sweep: Sweep, lower: Mapping[str, float], upper: dict[str, float], notes: list[str]) -> None:
    """Keep domains out that no run has tried."""
    for name, most in zip(sweep.domains, sweep.ratios.max(axis=0), strict=True):
        if most > 0:
            continue
        if lower.get(name, 0.0) > 0:
            raise UserError(
                "no run has tried this domain, so nothing is known about it",
                key=name,
                value=lower[name],
                remedy="leave out its least share, or add runs that have it",
            )
        upper[name] = 0.0
        notes.append(f"`{name}` is 0 in every run, so the proposal leaves it out")


def _write(storage: Storage, result: FitResult) -> dict[str, Any]:
    proposal = result.proposal
    storage.write_json("law.json", result.law.to_dict())
    storage.write_json("mixture.json", proposal.to_dict())
    storage.write_json("fit.json", result.to_dict())
    storage.write_text("fit.html", render(result))
    return {
        "output": storage.uri,
        "law": result.law.name,
        "rows": len(result.sweep.runs),
        "left_out": len(result.sweep.left_out),
        "mixture": proposal.mixture.shares,
        "objective": proposal.objective,
        "baseline_objective": proposal.baseline_objective,
        "gain": proposal.gain,
        "gain_interval": proposal.gain_interval,
        "quality": result.law.quality["objective"],
        "binding": proposal.binding,
        "notes": result.notes,
        "files": {name: storage.path(name) for name in ("law.json", "mixture.json", "fit.json", "fit.html")},
    }


def closing_words(summary: Mapping[str, Any]) -> str:
    """What `opmix fit` says to a person at its end."""
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
    return "\n".join(
        [
            f"{summary['law']} on {summary['rows']} runs{left_out}{rank}",
            *(f"  {name:<{width}}  {share:7.4f}" for name, share in mixture),
            f"objective {summary['baseline_objective']:.4f} -> {summary['objective']:.4f}, gain "
            f"{summary['gain']:.4f}{known}",
            *(f"- {said}" for said in [*summary["binding"], *summary["notes"]]),
            summary["files"]["fit.html"],
        ]
    )


def predict_command(directory: str | Path, ratios: str | Path, output: str | Path) -> dict[str, Any]:
    """Predict the metrics of new mixtures with a law that `fit_command` wrote.

    Args:
        directory: output of `fit_command`, or a path to its `law.json`.
        ratios: CSV of mixtures with the domains' columns of the fit, in any order.
        output: CSV to write: the columns that name the runs, the metrics under their own names, `objective`
            (weighted mean of the metrics) and `objective_std` (its standard error for one new run).

    Returns:
        JSON values: `output`, `rows`, `left_out` (a list of run, line and reason), `best` (run and objective).

    Raises:
        UserError: no law there, a domain is missing or unknown, no line holds a mixture.
    """
    place = Storage(str(directory))
    if place.exists("law.json"):
        law = FittedLaw.from_dict(place.read_json("law.json"))
    elif Path(directory).is_file():
        law = FittedLaw.from_dict(Storage(str(Path(directory).parent)).read_json(Path(directory).name))
    else:
        raise UserError("holds no law.json", file=directory, remedy="name the output of `opmix fit`")
    table = read_csv(ratios)
    for name in law.domains:
        if name not in table.header:
            raise UserError(
                "this domain has no column", file=ratios, key=name, remedy=nearest(name, table.header)
            )
    found = read_mixtures(table)
    for name in found.domains:
        if name not in law.domains:
            raise UserError(
                "the law knows no such domain", file=ratios, key=name, remedy=nearest(name, law.domains)
            )
    if not found.rows:
        raise UserError(
            f"no line holds a mixture; the first: {found.left_out[0].reason}",
            file=ratios,
            remedy="give shares that sum to 1",
        )
    shares = found.shares[:, [found.domains.index(name) for name in law.domains]]
    predicted, objective, std = law.predict(shares), law.objective(shares), law.objective_std(shares)
    named = [place for place, name in enumerate(table.header) if name.lower() in METADATA and name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*(table.header[place] for place in named), *law.metric_names, "objective", "objective_std"]
    )
    for row, line in enumerate(found.rows):
        cells = [table.rows[line][place] for place in named]
        writer.writerow(
            [*cells, *map(repr, [*predicted[row].tolist(), float(objective[row]), float(std[row])])]
        )
    target = Path(output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", file=target, remedy="check the path"
        ) from None
    best = int(np.argmin(objective))
    return {
        "output": str(target),
        "rows": len(found.rows),
        "left_out": [asdict(item) for item in found.left_out],
        "best": {
            "line": table.lines[found.rows[best]],
            **{table.header[place]: table.rows[found.rows[best]][place] for place in named},
            "objective": float(objective[best]),
            "objective_std": float(std[best]),
        },
    }
