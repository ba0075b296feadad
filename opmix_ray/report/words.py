"""The first paragraphs: what it gained, in one sentence; what was trained, decided and why; what that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from opmix_ray.config.objective import Objective
from opmix_ray.draw import numbers as n
from opmix_ray.output.ledger import DECIDING
from opmix_ray.output.result import kept_steps, kept_words, perplexity_change, perplexity_of
from opmix_ray.report import decision_panels as panels
from opmix_ray.report.gather import DecisionFiles, RunFiles
from opmix_ray.report.outlook import (
    IN_FORCE,
    PROPOSAL,
    TAKEN,
    UNIFORM,
    UNKNOWN,
    Difference,
    Outlook,
    difference,
    expected_of,
    gain_over,
    outlooks,
)


def verdict(run: RunFiles) -> str:
    """The sentence; it says what is not known where the run cannot know it."""
    made = [files for files in run.decisions if files.decision]
    if not made:
        return _undecided(run)
    gain, cost = gain_over_uniform(made), _price(run)
    if not math.isfinite(gain.mean):
        return f"What {_targets(run)} against uniform is not known: nothing here predicts it; {cost}."
    return f"{_ends(run, gain)}; {cost}."


def gain_over_uniform(made: list[DecisionFiles]) -> Difference:
    """By how much the objective ends below where the uniform mixture would have led, nats per token.

    The first decision of a stage is compared with uniform, each later one with the mixture in force before it, and the
    gains add up. So do the errors: they come from one law and go the same way. The last stage that decided counts.
    """
    stage = made[-1].decision.get("stage")
    last = [files for files in made if files.decision.get("stage") == stage]
    parts = [gain_over(last[0], UNIFORM), *(gain_over(files, IN_FORCE) for files in last[1:])]
    if not all(math.isfinite(part.mean) for part in parts):
        return UNKNOWN
    mean, half = sum(part.mean for part in parts), sum(part.mean - part.low for part in parts)
    return Difference(mean, mean - half, mean + half)


def in_per_cent(gain: Difference) -> tuple[float, float]:
    """Fall of the perplexity as a fraction, and half of its interval."""
    ends = -perplexity_change(-gain.low), -perplexity_change(-gain.high)
    return -perplexity_change(-gain.mean), abs(ends[1] - ends[0]) / 2


def _ends(run: RunFiles, gain: Difference) -> str:
    begin = f"{'Train on this mixture, and' if run.searched else 'Trained on this mixture,'} {_whose(run)}"
    if gain.mean == 0:
        return f"{begin} where uniform leads, which this mixture is"
    way = "lower" if gain.mean > 0 else "higher"
    if run.has_perplexity:
        fall, half = in_per_cent(gain)
        amount, give, what = n.percent(abs(fall)), n.percent(half), " in perplexity"
    else:
        amount, give, what = n.loss(abs(gain.mean)), n.loss(gain.high - gain.mean), " in the objective"
    sure = f"give or take {give}" if math.isfinite(gain.low) else "how surely is not known"
    nothing = ", so perhaps no different" if math.isfinite(gain.low) and gain.low <= 0 <= gain.high else ""
    return f"{begin} {amount} {way}{what} than with uniform by the law's estimate, {sure}{nothing}"


def _whose(run: RunFiles) -> str:
    """`your target addresses ends`: the sets that are minimised, by name where they are few."""
    names = [name for name, weight in run.objective.items() if weight]
    if len(names) == 1:
        return f"your target {names[0]} {_verb(run, 's')}"
    return f"your {len(names)} targets {_verb(run, '')}" if names else f"your targets {_verb(run, '')}"


def _verb(run: RunFiles, s: str) -> str:
    return f"end{s}" if run.finished else "should end"


def _targets(run: RunFiles) -> str:
    return f"{_whose(run)} at"


def _price(run: RunFiles) -> str:
    many = sum(1 for files in run.decisions if files.decision)
    what = "the decision" if many == 1 else f"the {many} decisions"
    if run.searched:
        flops = sum(run.ledger.get(purpose, {}).get("flops", 0.0) for purpose in DECIDING)
        return f"{what} cost {n.power(flops)} FLOPs" if flops else f"{what} cost no FLOPs"
    if not math.isfinite(run.overhead):
        return f"what {what} cost is not known yet"
    return (
        f"{what} cost {n.percent(run.overhead)} of the training compute"
        if run.overhead
        else f"{what} cost no FLOPs"
    )


def _undecided(run: RunFiles) -> str:
    if run.finished or (run.config is not None and not any(stage.decide_at for stage in run.config.stages)):
        strategy = run.config.strategy if run.config else ""
        kind = f" (strategy {strategy})" if strategy else ""
        return f"Nothing was decided in this run{kind}: it is what another run's mixture is compared with."
    return "Nothing is decided yet: there is no mixture to judge."


LEAST_CHANGE = 0.005  # of a share, to be named


def summary(run: RunFiles) -> list[str]:
    """Paragraphs of plain text; the first one can be read alone."""
    first = " ".join(text for text in (_trained(run), _decided(run), _cost(run)) if text)
    return [text for text in (first, _changed(run)) if text]


def moved(old: dict[str, float], new: dict[str, float], most: int = 3) -> str:
    """The largest changes of share in words: `code 34.0 % → 48.1 %, ...`."""
    names = sorted({**old, **new}, key=lambda name: -abs(new.get(name, 0.0) - old.get(name, 0.0)))
    large = [name for name in names if abs(new.get(name, 0.0) - old.get(name, 0.0)) >= LEAST_CHANGE]
    parts = [f"{name} {n.share(old.get(name, 0.0))} → {n.share(new.get(name, 0.0))}" for name in large[:most]]
    if len(large) > most:
        parts.append(f"{len(large) - most} more")
    return ", ".join(parts)


def outcome(files: DecisionFiles) -> str:
    """What came of a decision, in a few words."""
    if not files.decision:
        return f"in the making, {n.plural(len(files.rows), 'candidate')} scored"
    if files.decision.get("kept") != "proposal":
        return "old mixture kept"
    taken = taken_words(files)
    return "proposal taken" if taken == "the proposal" else f"{taken} taken"


def _trained(run: RunFiles) -> str:
    domains = n.plural(len(run.domains), "domain")
    if run.searched:
        return f"{_model(run)} was asked what to train on next{_meant(run)}; nothing was trained."
    tokens = run.ledger.get("main", {}).get("tokens", math.nan)
    if not tokens > 0 and run.config:
        tokens = run.step * run.config.train.batch_size * run.config.data.seq_len
    seen = f" ({n.count(tokens)} tokens)" if tokens > 0 else ""
    model = _model(run)
    if run.finished:
        kept = kept_steps(run.evaluations)
        best = f" The best weights of each stage were kept: {kept_words(kept)}." if kept else ""
        return f"{model} was trained for {n.plural(run.step, 'step')}{seen} on {domains}.{best}"
    return (
        f"This run is not finished: {model[:1].lower()}{model[1:]} has been trained for {run.step:,} of "
        f"{n.plural(run.planned_steps, 'planned step')}{seen} on {domains}."
    )


def _meant(run: RunFiles) -> str:
    """The stage that a search decides for, `, for 1,000 steps (512,000 tokens) on 3 domains`."""
    if run.config is None:
        return ""
    steps = run.config.stages[0].steps
    tokens = steps * run.config.train.batch_size * run.config.data.seq_len
    domains = n.plural(len(run.domains), "domain")
    return f", for {n.plural(steps, 'step')} ({n.count(tokens)} tokens) on {domains}"


def _model(run: RunFiles) -> str:
    if run.config is None:
        return "A language model"
    model = run.config.model
    if model.path:
        return f"The model {model.path}"
    kind = (model.config or {}).get("model_type")
    return f"A {kind} model with fresh weights" if kind else "A model with fresh weights"


def _decided(run: RunFiles) -> str:
    made = [files for files in run.decisions if files.decision]
    open_ = len(run.decisions) - len(made)
    tail = f" {n.plural(open_, 'decision')} still being made." if open_ else ""
    if not made:
        return f"No decision about the mixture has been made.{tail}"
    if len(made) == 1:
        return _one(made[0].decision) + tail
    taken = [files.decision for files in made if files.decision.get("kept") == "proposal"]
    left = [files.decision for files in made if files.decision.get("kept") != "proposal"]
    measured = [d for d in left if n.numbers(d.get("gain")) and not (d.get("details") or {}).get("choice")]
    text = [f"There were {len(made)} decisions; the mixture changed {_times(len(taken))}."]
    text += [_one(decision, short=True) for decision in taken]
    if len(measured) > 1:
        steps = [n.count(decision.get("step")) for decision in measured]
        text.append(
            f"At steps {', '.join(steps[:-1])} and {steps[-1]} it was left as it was: the interval of the proposal's "
            "measured gain did not lie above 0."
        )
        left = [decision for decision in left if decision not in measured]
    return " ".join([*text, *(_one(decision, short=True) for decision in left)]) + tail


def _one(decision: dict[str, Any], short: bool = False) -> str:
    at = f"At step {n.count(decision.get('step'))} {'it' if short else 'the mixture'}"
    old, new = n.numbers(decision.get("current")), n.numbers(decision.get("proposal"))
    reason = str(decision.get("reason") or "no reason is recorded")
    trials = n.number(decision.get("trials"))
    scored = f" after scoring {n.plural(int(trials), 'candidate mixture')}" if math.isfinite(trials) else ""
    if decision.get("kept") == "proposal":
        change = moved(old, new, 2 if short else 3) or "hardly any share"
        return f"{at} was changed{'' if short else scored} ({change}): {reason}."
    return f"{at} was left as it was{'' if short else scored}: {reason}."


def _times(many: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(many, f"{many} times")


def _changed(run: RunFiles) -> str:
    values = [(n.number(row.get("step")), run.weighted(row)) for row in run.evaluations]
    known = [(step, value) for step, value in values if math.isfinite(value)]
    if len(known) < 2:
        unknown = not run.finished and not run.searched
        return "Held-out loss has not been measured twice yet." if unknown else ""
    (first, before), (last, after) = known[0], known[-1]
    (old, new) = (_perplexity(run, row) for row in (run.evaluations[0], run.evaluations[-1]))
    change = new / old - 1 if old > 0 else math.nan
    mean = f" ({n.percent(change, sign=True)} in perplexity)" if math.isfinite(change) and run.unit else ""
    unit = f" {run.unit}" if run.unit else ""
    verb = "fell" if after < before else "rose"
    return (
        f"The objective, {_objective(run)}, {verb} from "
        f"{n.loss(before)} to {n.loss(after)}{unit} between step {first:,.0f} and step {last:,.0f}"
        f"{mean}. It is measured on documents that were not trained on. "
        "One run cannot say how much of this comes from the mixture. The evidence for that is the gain that each "
        "decision measured: how far the objective falls on simulated models when only the mixture differs."
    )


def _objective(run: RunFiles) -> str:
    if run.minimised.kind != "loss":
        what = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}
        kind = run.minimised.kind
        mean = f"the weighted mean of {what[kind]}" if kind in what else f"`{kind}`"
        return f"{mean} over {n.plural(len(run.minimised.sets), 'held-out set')}"
    weighed = [name for name, weight in run.objective.items() if weight and name in run.sets]
    if len(weighed) == 1:
        return f"the held-out {'loss' if run.has_perplexity else 'rate of wrong answers'} of {weighed[0]}"
    kind = "loss" if run.has_perplexity else "of losses and rates of wrong answers"
    return f"the weighted mean {kind} over {n.plural(len(weighed), 'held-out set')}"


def _perplexity(run: RunFiles, row: dict[str, Any]) -> float:
    return perplexity_of({key: n.numbers(row.get(key)) for key in ("losses", "perplexity")}, run.objective)


def _cost(run: RunFiles) -> str:
    ledger = run.ledger
    deciding = [ledger.get(purpose, {}) for purpose in DECIDING]
    spent, tokens, flops = (
        sum(units.get(u, 0.0) for units in deciding) for u in ("seconds", "tokens", "flops")
    )
    if run.searched:
        amounts = f"{n.count(tokens)} tokens, {n.power(flops)} FLOPs and {n.seconds(spent)} of computing time"
        return f"Deciding cost {amounts}."
    if not ledger.get("main", {}).get("flops"):
        return ""
    main = ledger["main"]
    waited = ledger.get("idle", {}).get("seconds", 0.0)
    idle = f", and its workers waited {n.seconds(waited)} for decisions" if waited > 0 else ""
    return (
        f"Deciding cost {n.percent(run.overhead)} of the FLOPs of training ({n.count(tokens)} tokens). It took "
        f"{n.seconds(spent)} of computing time; training took {n.seconds(main.get('seconds'))}{idle}."
    )


def taken_words(files: DecisionFiles) -> str:
    """What is in force from here, in a few words: `the proposal`, `the uniform mixture`, `the old mixture`."""
    if files.decision.get("kept") != "proposal":
        return "the old mixture"
    choice = files.details.get("choice")
    name = str(choice.get("name")) if isinstance(choice, dict) else "proposal"
    return (
        "the proposal" if name == "proposal" else name if name.startswith("half") else f"the {name} mixture"
    )


def why_not_best(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> list[str]:
    """Sentences that compare the proposal with the best candidate and with what was taken; none before a decision."""
    if not files.decision.get("proposal"):
        return []
    return [text for text in (_beside_best(files, objective), _beside_taken(files)) if text]


def _beside_best(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> str:
    scored = [row for row in files.rows if row.status == "ok" and math.isfinite(row.objective)]
    if not scored:
        return "No candidate was scored: the proposal comes from the law alone."
    best = min(scored, key=lambda row: row.objective)
    if files.checked is None or not math.isfinite(files.checked.objective):
        return f"Best of all is candidate {best.run} with {n.loss(best.objective)}; the proposal was not simulated."
    here = files.checked.objective
    if here <= best.objective:
        return (
            f"The proposal is the best of all: simulated it scores {n.loss(here)}, the best candidate, {best.run}, "
            f"{n.loss(best.objective)}."
        )
    try:
        gap = difference(files.checked, best, objective)
        known = f" ({panels.interval(gap)})" if math.isfinite(gap.mean) else ""
    except (TypeError, ValueError, AttributeError):
        gap, known = None, ""
    text = (
        f"Candidate {best.run} scores {n.loss(best.objective)}, the simulated proposal {n.loss(here)}{known}."
    )
    if gap is not None and gap.low <= 0 <= gap.high:
        text += " The difference may be noise of the held-out sequences."
    return f"{text} {_expected(files, best.run, best.ratios)}"


def _expected(files: DecisionFiles, run: str, ratios: dict[str, float]) -> str:
    """What the law expects of both for the steps ahead, which is what the proposal was chosen by."""
    candidate, proposal = (
        expected_of(files, ratios),
        expected_of(files, n.numbers(files.decision["proposal"])),
    )
    if not (math.isfinite(candidate) and math.isfinite(proposal)):
        return "No law says what training under either would lead to."
    ahead = (
        f"After training for the rest of the stage the law expects {n.loss(proposal)} of the proposal and "
        f"{n.loss(candidate)} of candidate {run}"
    )
    if proposal <= candidate:
        return (
            f"{ahead}. A candidate is a sum of probes: it knows their few steps, and neither the steps ahead nor how "
            "often a small domain would repeat. The proposal is chosen for the steps ahead."
        )
    return (
        f"{ahead}, which is lower: the proposal is held back by its limits and by KL to the prior "
        "(what holds it is listed below)."
    )


def _beside_taken(files: DecisionFiles) -> str:
    found = {outlook.name: outlook for outlook in outlooks(files, {})}
    taken, proposal = found.get(TAKEN), found.get(PROPOSAL)
    if taken is None or proposal is None or taken_words(files) == "the proposal":
        return ""
    before: Outlook = found[IN_FORCE]
    expected = f"Expected to end at {n.loss(taken.expected)}, the proposal at {n.loss(proposal.expected)}"
    if not math.isfinite(taken.expected):
        return ""
    kept = "" if files.decision.get("kept") == "proposal" else f", so {n.loss(before.expected)} is kept"
    return f"Taken was {taken_words(files)}. {expected}{kept}."
