"""Costs add up by purpose, survive a restart, and the overhead is what deciding costs over training."""

from __future__ import annotations

import pytest

from opmix_ray.output.ledger import PURPOSES, Ledger


def test_amounts_add_up_by_purpose_and_unit() -> None:
    ledger = Ledger()
    ledger.add("probes", tokens=10, flops=2e9)
    ledger.add("probes", flops=1e9, seconds=0.5)
    assert ledger["probes"] == {"tokens": 10, "flops": 3e9, "seconds": 0.5, "bytes": 0}
    assert set(ledger) == set(PURPOSES)


def test_overhead_counts_probes_search_and_fit_but_not_evaluation() -> None:
    ledger = Ledger()
    assert ledger.overhead() == 0
    ledger.add("main", flops=100)
    for purpose, flops in (("probes", 5), ("search", 4), ("fit", 1), ("evaluation", 50)):
        ledger.add(purpose, flops=flops)
    assert ledger.overhead() == pytest.approx(0.1)


def test_a_ledger_goes_on_from_what_was_written() -> None:
    ledger = Ledger()
    ledger.add("main", tokens=7)
    again = Ledger(ledger.to_dict())
    again.add("main", tokens=1)
    assert again["main"]["tokens"] == 8


def test_an_unknown_purpose_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Ledger().add("lunch", tokens=1)
