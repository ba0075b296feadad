"""What a person sees: live bars in a terminal, plain lines elsewhere, nothing when asked for JSON."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from opmix_ray.commands.progress import PlainProgress, RichProgress, make_progress
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.model.probe import Probe
from opmix_ray.trials.rows import TrialRow

SHARES = {"code": 0.25, "prose": 0.75}


def go_through(progress: Progress) -> None:
    """Everything that happens in a run, once."""
    progress.preparing("code", 0, 100)
    progress.preparing("code", 100, 100)
    progress.segment_started("first", 0, 4, SHARES)
    progress.row(
        {"kind": "train", "step": 2, "loss": 3.25, "tokens_per_second": 1234.0, "learning_rate": 1e-3}
    )
    progress.row({"kind": "evaluation", "step": 4, "losses": {"code": 3.0, "prose": 4.0}})
    progress.decision_started(0, 4, ["code", "prose"], 2)
    progress.probe_started("code")
    progress.probe_done(
        Probe(
            name="code",
            data=SHARES,
            factors={},
            scale=2.0,
            rank=4,
            alpha=8.0,
            target_modules=[],
            losses=[3.5],
        )
    )
    row = TrialRow("000", SHARES, SHARES, {"code": 3.0}, 3.5)
    progress.trial(row, row, 2)
    progress.trial(TrialRow("001", SHARES, SHARES, status="failed"), row, 2)
    progress.decided(
        Decision(
            0, 4, "first", "old", "it may be nothing", 2, 1, SHARES, SHARES, SHARES, None, "log-share", {}
        )
    )
    progress.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_every_event_is_shown(terminal: bool) -> None:
    out = io.StringIO()
    progress = make_progress(Console(file=out, force_terminal=terminal, width=200))
    assert type(progress) is (RichProgress if terminal else PlainProgress)
    go_through(progress)
    text = out.getvalue()
    for part in (
        "prepared code",
        "stage first",
        "held-out loss 3.5000",
        "probe code",
        "old mixture kept",
        "code 0.250",
    ):
        assert part in text
    assert ("\x1b[" in text) is terminal


def test_a_terminal_shows_step_loss_speed_and_the_best_candidate() -> None:
    out = io.StringIO()
    go_through(make_progress(Console(file=out, force_terminal=True, width=200)))
    for part in ("2/4", "loss 3.250", "1,234 tokens/s", "candidates", "best 3.5000"):
        assert part in out.getvalue()


def test_nothing_is_shown_when_silent() -> None:
    out = io.StringIO()
    go_through(make_progress(Console(file=out, force_terminal=True), silent=True))
    assert out.getvalue() == ""
