"""How much of what probes show beyond counting is believed."""

from __future__ import annotations

import numpy as np
import pytest

from opmix_ray.decision.data_law import BEYOND, GROWTH, HALF, SETTLING
from opmix_ray.decision.rule import fit
from opmix_ray.trials.rows import TrialRow

from .test_aimed import DOMAINS, question

HELP = 0.4  # nats that a share of `middle` takes from the set `hard`, which no count shows
STEPS = 100.0


def rows(help: float) -> list[TrialRow]:
    """Candidates that lose what counting says, and less on `hard` the more of `middle` they hold."""
    law = fit([], question())
    found = []
    for number, shares in enumerate(np.random.default_rng(3).dirichlet(np.ones(3), 24)):
        losses = dict(zip(DOMAINS, law.predict(shares[None])[0].tolist(), strict=True))
        losses["hard"] -= help * shares[1]
        ratios = dict(zip(DOMAINS, shares.tolist(), strict=True))
        found.append(TrialRow(f"{number:03d}", {}, ratios, losses, sum(losses.values()) / 3))
    return found


def believed(probe_steps: float, help: float = HELP) -> float:
    """Nats of `middle`'s help on `hard` in the law, of which the candidates show `help`."""
    probed, counted = (fit(r, question(probe_steps=probe_steps)) for r in (rows(help), []))
    away = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    with_probes, alone = (
        np.diff(law.predict(away)[:, DOMAINS.index("hard")])[0] for law in (probed, counted)
    )
    return float(with_probes - alone)


@pytest.mark.parametrize("steps", [4.0, 60.0, 600.0])
def test_the_longer_the_probe_the_more_is_believed(steps: float) -> None:
    growth = GROWTH * np.log1p(STEPS / SETTLING) / np.log1p(steps / SETTLING)
    part = BEYOND * steps / (steps + HALF)
    assert believed(steps) == pytest.approx(part * growth * HELP, rel=0.15)


def test_a_few_steps_move_a_mixture_less_than_many() -> None:
    assert believed(4.0) < 0.5 * believed(60.0) < 0.5 * HELP


def test_where_probes_move_a_set_further_than_counts_say_few_steps_are_believed_too() -> None:
    beyond = [believed(4.0, help=size) / size for size in (HELP, 20.0)]
    assert beyond[1] > 5 * beyond[0]
