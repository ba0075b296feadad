"""The one sentence at the top of the page: what the targets end at against uniform, how sure that is, what it cost."""

from __future__ import annotations

import math

from opmix_ray.draw import numbers as n
from opmix_ray.output.ledger import DECIDING
from opmix_ray.output.result import perplexity_change
from opmix_ray.report.gather import DecisionFiles, RunFiles
from opmix_ray.report.outlook import IN_FORCE, UNIFORM, gain_over
from opmix_ray.report.paired import UNKNOWN, Difference


def verdict(run: RunFiles) -> str:
    """The sentence; it says what is not known where the run cannot know it."""
    made = [files for files in run.decisions if files.decision]
    if not made:
        return _undecided(run)
    gain, cost = gain_over_uniform(made), _cost(run)
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


def _cost(run: RunFiles) -> str:
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
