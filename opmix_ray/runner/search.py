"""One decision for a checkpoint from anywhere: `opmix search`; its probes alone, as a `SearchTask` for scripts.

The front between evaluation sets says what one of them costs the others, by the law of the decision.

points = front(law, ["code", "prose"], prior=mixture, kl=0.05, lower={}, upper={}, current=mixture)
points[0].losses, points[0].mixture

task = make_task(load_config("examples/quickstart.yaml"))
tune.run(tune.with_parameters(MixtureTrial, task=task), ...)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from opmix_ray.cluster.connect import connected
from opmix_ray.config import RunConfig, with_given
from opmix_ray.decision.make import Situation, make_decision
from opmix_ray.decision.old_part import OLD, choose_components
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.propose import propose
from opmix_ray.decision.rule import Decision
from opmix_ray.decision.task import load_weights, probe_task, put_task
from opmix_ray.errors import UserError
from opmix_ray.laws import FittedLaw
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import snapshot
from opmix_ray.output.ledger import Ledger, Session
from opmix_ray.output.lock import locked, raise_fence
from opmix_ray.output.result import write_mixture
from opmix_ray.output.state import open_output
from opmix_ray.report import write_report
from opmix_ray.runner.base import resolved, start_stage
from opmix_ray.runner.plan import space_of, stage_domains
from opmix_ray.runner.trust import changed, fingerprint
from opmix_ray.runner.validate import refuse, validate
from opmix_ray.storage import Storage
from opmix_ray.train.probes import train_all
from opmix_ray.trials.space import read_space
from opmix_ray.trials.trial import SearchTask

MOST_POINTS = 40
SAME = 1e-4  # nats per token within which two points are one


@dataclass(frozen=True)
class Point:
    """One mixture of the front.

    Args:
        weights: of the sets in the mean loss that it minimises.
        mixture: share by domain.
        losses: predicted by set at the end of the stage, nats per token.
    """

    weights: dict[str, float]
    mixture: dict[str, float]
    losses: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def front(
    law: FittedLaw,
    sets: Sequence[str],
    *,
    prior: Mixture,
    kl: float,
    lower: Mapping[str, float],
    upper: Mapping[str, float],
    current: Mixture,
    expand: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> list[Point]:
    """Mixtures of which none is better than another on all sets, in the order of the first set's loss.

    Each is what a decision proposes for the weighted mean loss with other weights, evenly spread over all there are.

    Args:
        law: of the decision.
        sets: two or more of its metrics.
        prior, kl, lower, upper, current, expand, seed: as for `propose`.
    """
    found = []
    for weights in _weights(len(sets)):
        by_set = dict(zip(sets, weights, strict=True))
        asked = FittedLaw(
            law.name, law.domains, law.metric_names,
            np.array([by_set.get(name, 0.0) for name in law.metric_names]), law.responses, table=law.table,
        )  # fmt: skip
        proposal = propose(
            asked, prior=prior, kl=kl, lower=lower, upper=upper, current=current, expand=expand, seed=seed
        )
        mixture = proposal.leaves or proposal.mixture
        found.append(Point(by_set, mixture.shares, {name: proposal.predicted[name] for name in sets}))
    return sorted(_best(found), key=lambda point: tuple(point.losses.values()))


def _weights(count: int) -> list[tuple[float, ...]]:
    """Weights on an even grid, all of sum 1; with many sets each alone, and all together."""
    for parts in (10, 6, 5, 4, 3, 2):
        grid = (
            [row for row in itertools.product(range(parts + 1), repeat=count) if sum(row) == parts]
            if ((parts + 1) ** count <= 100_000)
            else []
        )
        if 0 < len(grid) <= MOST_POINTS:
            return [tuple(value / parts for value in row) for row in grid]
    alone = [tuple(float(k == own) for k in range(count)) for own in range(count)]
    return [*alone, tuple(1 / count for _ in range(count))]


def _best(points: Sequence[Point]) -> list[Point]:
    """Those that no other is better than, each once."""
    losses = np.array([list(point.losses.values()) for point in points])
    kept: list[int] = []
    for k, row in enumerate(losses):
        worse = (losses <= row + SAME).all(axis=1) & (losses < row - SAME).any(axis=1)
        if not worse.any() and all(np.abs(losses[other] - row).max() > SAME for other in kept):
            kept.append(k)
    return [points[k] for k in kept]


PLACE = "decisions/000"


def search_once(
    config: RunConfig,
    model: Path | None,
    *,
    step: int = 0,
    overwrite: bool = False,
    pareto: bool = False,
    progress: Progress | None = None,
) -> Decision:
    """Decide the next mixture of a checkpoint.

    The first stage of the configuration says which domains there are, which mixture is in force (`start`), for how
    many steps the answer is meant, and where the search space comes from.

    Args:
        config: data, probes, search.
        model: directory of the checkpoint; None: the configured model.
        step: of the checkpoint, for the record.
        overwrite: remove what an earlier search left in the output.
        pareto: find the front between the sets with a weight too, as `details.front`.
        progress: what a person sees.

    Raises:
        UserError: something in the input is wrong.
    """
    progress = progress or Progress()
    if model is not None:
        if not model.is_dir():
            raise UserError(
                "no such directory", key="--model", value=model, remedy="name a Hugging Face directory"
            )
        config = with_given(config, model=model)
    stage = config.stages[0]
    if len(stage_domains(config, stage)) < 2:
        raise UserError("a decision needs at least two domains", key="data.domains", remedy="add a domain")
    storage = Storage(config.output_uri())
    with resolved(config) as run, locked(storage):
        config = run.config
        state = open_output(run.written, storage, resume=False, overwrite=overwrite)
        raise_fence(storage)
        prepared = validate(config, on_progress=progress.preparing)
        content = fingerprint(config, prepared)
        refuse(changed(state.content or content, content))
        state.content = content
        state.save(storage)
        start = start_stage(config, 0, run.prior, prepared)
        config = run.stages[0]
        sets = [name for name, weight in config.objective().items() if weight]
        if pareto and len(sets) < 2:
            raise UserError(
                f"a front is between two sets or more, and only {sets[0]} has a weight",
                key="evaluation.weights", value=config.evaluation.weights, remedy="give another set a weight",
            )  # fmt: skip
        mixture = start.mixture
        situation = Situation(
            index=0,
            step=step,
            stage=stage.name,
            space=space_of(config, stage, 0),
            current=mixture,
            model=None,
            tokens_left=stage.steps * config.train.batch_size * prepared.seq_len,
            tokens_used=start.used,
            old=start.old,
        )
        ledger, session = Ledger(), Session(storage)
        with connected(config):
            decision = make_decision(config, prepared, storage, situation, progress, ledger)
        if pareto and not storage.child(PLACE).exists("law.json"):
            progress.message(f"no front: there is no law to draw one by; {decision.reason}")
        elif pareto:
            decision.details["front"] = _front(config, storage, decision, sets)
            storage.child(PLACE).write_json("decision.json", decision.to_dict())
        state.mixture = Mixture(decision.mixture).shares
        state.mixtures = [
            {"step": step, "stage": stage.name, "why": "start", "mixture": mixture.shares},
            {"step": step, "stage": stage.name, "why": "decision 0", "mixture": decision.mixture},
        ]
        state.step, state.stage, state.ledger = step, stage.name, ledger.to_dict()
        write_mixture(storage, decision.mixture, state.mixtures, prepared)
        state.save(storage)
        session.save()
        progress.message(f"report: {write_report(storage)}")
        return decision


def _front(config: RunConfig, storage: Storage, decision: Decision, sets: list[str]) -> list[dict[str, Any]]:
    """What a decision would propose if the sets weighed otherwise, by the law it was made with."""
    law, current = FittedLaw.from_dict(storage.child(PLACE).read_json("law.json")), Mixture(decision.current)
    inside = decision.details["components"].get(OLD)
    expand = None if inside is None or OLD not in law.domains else {OLD: inside}
    if expand is not None:
        rest = [name for name in law.domains if name != OLD]
        held = {OLD: 1 - sum(current[name] for name in rest)} | {name: current[name] for name in rest}
        current = Mixture(held)
    bounds = decision.details["bounds"]
    return [
        point.to_dict()
        for point in front(
            law, sets, prior=current.joined(), kl=config.proposal.kl, lower=bounds["lower"],
            upper=bounds["upper"], current=current, expand=expand, seed=config.seed,
        )
    ]  # fmt: skip


def make_task(config: RunConfig, *, model: Path | None = None) -> SearchTask:
    """Prepare the data and train the probes of a decision about the first stage's domains; needs Ray.

    Args:
        config: data, model, probes, search.
        model: directory of a checkpoint; None: the configured model.

    Raises:
        UserErrors: everything that is wrong with the configuration and the data.
    """
    with resolved(config) as run:
        prepared = validate(run.config)
        start = start_stage(run.config, 0, run.prior, prepared)
        config = run.stages[0]
        kind = read_space(config.search.space)[0].kind
        chosen = choose_components(kind, start.old, start.mixture)
        weights = load_weights(config, prepared, model)
        base_ref = ray.put(snapshot(weights))
        tasks = [probe_task(config, prepared, name, chosen.replayed, "task") for name in chosen.names]
        found = train_all(tasks, base_ref)
        probes = [found[name] for name in chosen.names]
        return put_task(config, prepared, weights, base_ref, probes, start.mixture.domains)[0]
