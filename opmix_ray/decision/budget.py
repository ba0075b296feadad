"""How large the probes and the search of a decision may be, so that all decisions of a stage cost what they may.

size = sized(config, stage, components=8, sets=2)
size.probe.steps, size.trials        # probe None: not even small probes fit
size.words                                                # "probes of 6 steps of 4 sequences, ..."
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from opmix_ray.config import ProbeConfig, RunConfig, StageConfig

# FLOPs of a token in forward passes: training has two more for the gradients, a probe leaves out those of the weights.
TRAIN, PROBE, FORWARD = 3.0, 2.3, 1.0
FOR_PROBES = 0.55  # of a decision's budget
SAFE = 0.9  # of the budget, since the three figures above are rounded
# Where counting speaks for every set, probes of a few steps moved the mixture by .04 and cost .04 nats, mean of 18
# problems (docs/benchmarks.md): there they come where they cost next to nothing, long enough to tell.
FOR_CHECKING, LEAST_CHECKING = 0.2, 12  # of the budget; steps
LEAST_STEPS, LEAST_BATCH = 3, 2
LEAST_SEQUENCES = 4
MOST_ASKED = 16  # sequences of each set that the model is asked about before counting
FOR_ASKING = 0.1  # of a decision's budget
MORE_TRIALS = 3  # candidates at least, in addition to one for each component


@dataclass(frozen=True)
class Size:
    """What a decision may be.

    Args:
        probe: the run's settings of probes, with sizes that fit; None: no probes fit, the decision counts alone.
        trials: candidates.
        sequences: held-out ones of each set that a candidate sees; without any, that the model may be measured on.
        share: of the stage's FLOPs that this decision is expected to cost.
        words: what was chosen, and why.
        asked: held-out sequences of each set that the model may be asked about before counting; 0: none.
    """

    probe: ProbeConfig | None
    trials: int
    sequences: int
    share: float
    words: str
    asked: int = 0


def decision_size(config: RunConfig, stage: StageConfig, components: int, *, first: bool = False) -> Size:
    """Sizes for one decision of a stage, for the sets that it looks at.

    Args:
        config: the run's.
        stage: with its decisions.
        components: probes that are trained.
        first: the weights have trained no step yet.
    """
    names = config.decided_on()
    counted = config.questions().isdisjoint(names)
    return sized(config, stage, components=components, sets=len(names), counted=counted, first=first)


def sized(
    config: RunConfig, stage: StageConfig, *, components: int, sets: int, counted: bool = False, first: bool = False
) -> Size:  # fmt: skip
    """Sizes for one decision of a stage.

    Args:
        config: the run's.
        stage: with its decisions.
        components: probes that are trained.
        sets: evaluation sets that are scored.
        counted: counting speaks for all of them, so that probes only check it.
        first: the weights have trained no step yet.
    """
    probe, search, train = config.probe, config.search, config.train
    length = config.data.seq_len
    whole = stage.steps * train.batch_size * length * TRAIN
    batch = probe.batch_size or train.batch_size
    count = components + (1 if probe.check else 0)
    looks = 2 if probe.check else 1  # at the proposal, and of the check

    def cost(steps: int, rows: int, trials: int, sequences: int) -> float:
        probes = count * steps * rows * length * PROBE
        return (probes + (trials + looks) * sequences * sets * length * FORWARD) / whole

    if search.budget is None:
        share = cost(probe.steps, batch, search.trials, search.sequences)
        return Size(
            probe,
            search.trials,
            search.sequences,
            share,
            "search.budget is null: sizes as configured",
            MOST_ASKED,
        )
    by_hand = {f"probe.{name}" for name in probe.sized_by_rule & probe.model_fields_set} | {
        f"search.{name}" for name in search.sized_by_rule & search.model_fields_set
    }
    checking = counted and not by_hand and config.proposal.law == "auto"
    # Weights that have seen no text tell a probe nothing: what that decision would have cost is left to the others.
    fresh = stage.restart or stage.name == config.stages[0].name
    unread = checking and not pretrained(config) and fresh
    often = max(1, len(stage.decide_at) - (unread and min(stage.decide_at, default=1) * stage.steps <= 0.5))
    one = SAFE * search.budget / often * whole
    look = sets * length * FORWARD  # at one sequence of each set
    known = look if pretrained(config) else 0.0  # of it, what is expected to be spent

    def affordable(part: float) -> int:
        count = min(MOST_ASKED, int(part * one / look))
        return count if count >= LEAST_SEQUENCES else 0

    measured = max(LEAST_SEQUENCES, min(search.sequences, int(one / look)))
    alone, asked = affordable(1.0), affordable(FOR_ASKING)
    one = (FOR_CHECKING * one if checking else one) - asked * known
    rows = FOR_PROBES * one / (count * length * PROBE)  # of one probe, over all its steps
    if "probe.batch_size" not in by_hand:
        batch = max(LEAST_BATCH, min(batch, round(math.sqrt(rows))))
    steps = probe.steps if "probe.steps" in by_hand else min(probe.steps, int(rows / batch))
    passes = (1 - FOR_PROBES) * one / look  # sequences of each set, over all candidates
    fewest = components + MORE_TRIALS
    trials = search.trials
    if "search.trials" not in by_hand:
        trials = max(fewest, min(search.trials, int(passes / LEAST_SEQUENCES) - looks))
    sequences = search.sequences
    if "search.sequences" not in by_hand:
        sequences = min(search.sequences, int(passes / (trials + looks)))
    part = search.budget * (FOR_CHECKING if checking else 1)
    percent = f"{100 * part:g} % of the stage's FLOPs for {often} decision(s)"
    if steps < (LEAST_CHECKING if checking else LEAST_STEPS) or sequences < LEAST_SEQUENCES:
        if config.proposal.law != "auto":  # a law that cannot be had by counting
            share = cost(probe.steps, probe.batch_size or train.batch_size, search.trials, search.sequences)
            return Size(
                probe, search.trials, search.sequences, share,
                f"{stage.steps} steps are too few for probes of {components} components within search.budget "
                f"({percent}), and proposal.law {config.proposal.law} needs them: sizes as configured, "
                f"about {100 * share:.0f} %",
            )  # fmt: skip
        how = "asking the model and counting" if alone * known else "counting alone"
        within = (
            "that check what is counted" if checking else f"of {components} components within search.budget"
        )
        why = f"{stage.steps} steps are too few for probes {within} ({percent})"
        if not search.budget:
            why = "search.budget is 0"
        return Size(None, 0, measured, alone * known / whole, f"{why}: the mixture comes from {how}", alone)
    if unread and first:
        return Size(
            None, 0, measured, 0.0, "nothing is learned yet: the mixture comes from counting alone", alone
        )
    kept = f"; set by hand: {', '.join(sorted(by_hand))}" if by_hand else ""
    share = cost(steps, batch, trials, sequences) + asked * known / whole
    over = "within" if share * often <= search.budget else "more than"
    return Size(
        probe.but(steps=steps, batch_size=batch), trials, sequences, share,
        f"{count} probes of {steps} steps of {batch} sequences, {trials} candidates on {sequences} sequences a set: "
        f"about {100 * share:.1f} %, {over} {percent}{kept}",
        asked,
    )  # fmt: skip


def pretrained(config: RunConfig) -> bool:
    """Whether a run begins with weights that know something: its decisions are expected to ask the model first."""
    return config.model.path is not None or config.base.run is not None
