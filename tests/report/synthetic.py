"""Output directories of runs that never were, written with the real dataclasses; law and decision are real."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from opmix_ray.config import RunConfig, dump_config
from opmix_ray.decision.rule import DecisionInputs, conclude, fit_decision
from opmix_ray.mixture import Mixture
from opmix_ray.output.ledger import Ledger
from opmix_ray.output.result import make_result
from opmix_ray.output.state import CONFIG, METRICS, MIXTURE, RESULT, RunState
from opmix_ray.storage import Storage
from opmix_ray.trials.rows import RowLog, TrialRow
from opmix_ray.trials.space import Components

HOSTILE = (
    "code",
    "<script>alert(1)</script>",
    'a&b "quoted" </title>',
    "日本語 и другие",
    "a_name_that_goes_on_and_on_without_any_end_in_sight",
    "`tick` ${x} {{y}}",
)
PLAIN = ("code", "speeches", "glossary", "german", "novel", "mathematics")
SEQUENCES, TARGETS, BATCH, LENGTH = 16, 63, 4, 64


def make_run(
    place: Path,
    *,
    domains: tuple[str, ...] = PLAIN,
    decisions: int = 5,
    trials: int = 20,
    steps: int = 600,
    bad_rows: bool = True,
    seed: int = 0,
) -> Storage:
    """Write a finished run.

    Args:
        place: directory.
        domains: each is also an evaluation set.
        decisions, trials: how many, and candidates in each.
        steps: of the one stage.
        bad_rows: make one candidate NaN and one failed in every decision.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    storage = Storage(str(place))
    config = _config(domains, steps, decisions, trials)
    storage.write_text(CONFIG, dump_config(config))
    current = Mixture({name: 1.0 + i for i, name in enumerate(domains)})
    state = RunState(step=steps, stage="pretrain", mixture=current.shares, finished=True)
    state.mixtures.append(_entry(0, "start of the stage", current))
    ledger = Ledger()
    for index in range(decisions):
        step = steps * (index + 1) // (decisions + 1)
        current = _decide(storage, config, current, index, step, rng, ledger, bad_rows)
        if current.shares != state.mixture:
            state.mixture = current.shares
            state.mixtures.append(_entry(step, f"decision {index}", current))
    ledger.add("main", tokens=steps * BATCH * LENGTH, flops=4.2e15, seconds=4321.0)
    ledger.add("evaluation", tokens=9e5, flops=1.1e14, seconds=77.7)
    state.ledger = ledger.to_dict()
    rows = _metrics(domains, steps, state, rng)
    state.rows = len(rows)
    storage.write_text(METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    storage.write_json(MIXTURE, {"mixture": state.mixture, "history": state.mixtures})
    state.save(storage)
    tokens = {name: 20_000 * (1 + i) for i, name in enumerate(domains)}
    storage.write_json(RESULT, make_result(config, state, rows, storage, tokens, LENGTH))
    return storage


def _config(domains: tuple[str, ...], steps: int, decisions: int, trials: int) -> RunConfig:
    at = [(i + 1) / (decisions + 1) for i in range(decisions)]
    config = RunConfig.model_validate(
        {
            "name": "synthetic",
            "model": {"config": {"model_type": "llama"}},
            "data": {"seq_len": LENGTH, "domains": {"text": {"path": "/data/x.jsonl"}}},
            "train": {"batch_size": BATCH},
            "stages": [{"name": "pretrain", "steps": steps, "decide_at": at}],
            "search": {"trials": trials, "sequences": SEQUENCES},
        }
    )
    source = config.data.domains["text"]  # names that validation would refuse are put in without it
    data = config.data.but(domains={name: source for name in domains})
    return config.but(data=data)


def _entry(step: int, why: str, mixture: Mixture) -> dict[str, object]:
    return {"step": step, "stage": "pretrain", "why": why, "mixture": mixture.shares}


def _decide(
    storage: Storage,
    config: RunConfig,
    current: Mixture,
    index: int,
    step: int,
    rng: np.random.Generator,
    ledger: Ledger,
    bad_rows: bool,
) -> Mixture:
    domains = tuple(current.domains)
    data = np.vstack([current.array(), *(0.9 * np.eye(len(domains)) + 0.1 * current.array())])
    components = Components(("old", *domains), domains, data)
    question = DecisionInputs(
        components=components,
        sets=domains,
        objective=config.objective(),
        current=current,
        prior=current,
        lower=dict(zip(domains, data.min(axis=0).tolist(), strict=True)),
        upper={name: 1.0 for name in domains},
        settings=config.proposal,
        seed=index,
        steps=200.0,
        probe_steps=25,
    )
    levels = rng.uniform(5.0, 6.0, len(domains)) / (1 + 0.1 * index)
    strength = rng.uniform(0.05, 0.3, len(domains)) / (1 + 2.5 * index)
    hard = rng.normal(0, 0.05 * TARGETS, (len(domains), SEQUENCES))
    place = storage.child(f"decisions/{index:03d}")
    log = RowLog(place, domains, domains)

    def score(run: str, weights: np.ndarray, status: str = "ok") -> TrialRow:
        return _row(run, weights, components, question, levels, strength, hard, rng, status)

    unusual = {5: "nan", 9: "failed"} if bad_rows else {}
    for trial in range(config.search.trials):
        weights = np.eye(len(domains) + 1)[0] if trial == 0 else rng.dirichlet(np.full(len(domains) + 1, 0.7))
        log.add(score(f"{trial:03d}", weights, unusual.get(trial, "ok")))
    candidates = list(log.rows)
    found = fit_decision(candidates, question)
    checked = None if found.weights is None else score("proposal", found.weights)
    if checked is not None:
        log.add(checked)
    decision = conclude(candidates, checked, found, question, index=index, step=step, stage="pretrain")
    cost = {
        "probes": {"tokens": 44800, "flops": 3.1e13, "seconds": 60.5, "bytes": 6.5e6},
        "search": {"tokens": 129024, "flops": 4.4e13, "seconds": 21.25, "bytes": 4.5e5},
        "fit": {"seconds": found.seconds},
    }
    for purpose, amounts in cost.items():
        ledger.add(purpose, **amounts)
    decision.details.update(
        components={
            name: dict(zip(domains, row.tolist(), strict=True))
            for name, row in zip(components.names, data, strict=True)
        },
        probes={name: _probe(rng) for name in components.names},
        weights=None if found.weights is None else found.weights.tolist(),
        cost=cost,
        wall_seconds={"probes": 33.25, "search": 12.5},
    )
    if found.law is not None:
        place.write_json("law.json", found.law.to_dict())
    place.write_json("decision.json", decision.to_dict())
    return Mixture(decision.mixture)


def _probe(rng: np.random.Generator) -> dict[str, object]:
    losses = 6 - 0.03 * np.arange(25) + rng.normal(0, 0.05, 25)
    return {"tokens": 6400, "flops": 4e12, "seconds": 8.0, "losses": losses.tolist()}


def _row(
    run: str,
    weights: np.ndarray,
    components: Components,
    question: DecisionInputs,
    levels: np.ndarray,
    strength: np.ndarray,
    hard: np.ndarray,
    rng: np.random.Generator,
    status: str,
) -> TrialRow:
    ratios = components.ratios(weights)
    given = dict(zip(components.names, weights.tolist(), strict=True))
    shares = dict(zip(components.domains, ratios.tolist(), strict=True))
    if status == "failed":
        return TrialRow(run, given, shares, status="failed")
    loss = levels - strength * np.log(ratios + 0.3)
    nats = TARGETS * loss[:, None] + hard + rng.normal(0, 0.01 * TARGETS, hard.shape)
    if status == "nan":
        nats[0, 3] = math.nan
    means = nats.sum(axis=1) / (TARGETS * nats.shape[1])
    return TrialRow(
        run,
        given,
        shares,
        losses=dict(zip(components.domains, means.tolist(), strict=True)),
        objective=float(sum(w * m for w, m in zip(question.objective.values(), means, strict=True))),
        status=status,  # type: ignore[arg-type]
        nats=dict(zip(components.domains, nats.tolist(), strict=True)),
        targets={name: [TARGETS] * nats.shape[1] for name in components.domains},
        tokens=6144,
        flops=2.1e12,
        seconds=1.0,
    )


def _metrics(
    domains: tuple[str, ...], steps: int, state: RunState, rng: np.random.Generator
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    delivered = dict.fromkeys(domains, 0.0)
    for step in range(0, steps + 1, steps // 30):
        fall = 8.0 * math.exp(-step / steps)
        if step % (steps // 6) == 0:
            losses = {name: fall + 0.1 * i + rng.normal(0, 0.02) for i, name in enumerate(domains)}
            rows.append(
                {
                    "kind": "evaluation",
                    "step": step,
                    "stage": "pretrain",
                    "losses": losses,
                    "perplexity": {name: math.exp(value) for name, value in losses.items()},
                    "bits_per_byte": {name: value / 2.5 for name, value in losses.items()},
                    "tokens": 4096,
                    "seconds": 1.5,
                }
            )
        if step == 0:
            continue
        force = [e["mixture"] for e in state.mixtures if e["step"] < step][-1]
        for name in domains:
            delivered[name] += force[name] * BATCH * (steps // 30)
        rows.append(
            {
                "kind": "train",
                "step": step,
                "stage": "pretrain",
                "loss": fall + rng.normal(0, 0.05),
                "learning_rate": 2e-3,
                "tokens_per_second": 4000.0,
                "delivered": {name: round(value) for name, value in delivered.items()},
            }
        )
    return rows
