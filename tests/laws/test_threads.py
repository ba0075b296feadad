"""Laws compute with one BLAS thread and leave the process as it was."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from opmix_ray.laws import LAWS, Law, Response, Table, fit_law
from opmix_ray.laws.base import Constant
from opmix_ray.numerics import one_thread


def threads() -> set[int]:
    return {item["num_threads"] for item in ThreadpoolController().info() if item["user_api"] == "blas"}


def test_one_thread_inside_and_as_before_outside() -> None:
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = threads()
        with one_thread():
            assert threads() == {1}
        assert threads() == before
        with pytest.raises(ZeroDivisionError), one_thread():
            raise ZeroDivisionError
        assert threads() == before


def test_a_fit_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watching(Law):
        name = "watching"

        def fit(self, table: Table) -> list[Response]:
            seen.append(threads())
            return [Constant(0.0) for _ in table.metric_names]

    monkeypatch.setitem(LAWS, "watching", Watching)
    ratios = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        fit_law(ratios, ratios, domains=list("abc"), metric_names=list("xyz"), law="watching")
    assert seen
    assert all(found == {1} for found in seen)
