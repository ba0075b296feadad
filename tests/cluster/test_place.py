"""A long TMPDIR, as batch systems set it, is too long for Ray's sockets: a shorter place is taken, or named."""

from __future__ import annotations

from pathlib import Path

import pytest

from opmix_ray.cluster import address
from opmix_ray.cluster.address import LONGEST, default_place, fits, ray_place
from opmix_ray.errors import UserError

LONG = "/scratch/" + "nested-scratch-directory-of-a-batch-job/" * 3


def test_a_short_place_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert default_place() == Path("/tmp/ray")
    assert ray_place() is None


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_instead_of_a_long_place_a_short_one_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, LONG)
    found = ray_place()
    assert found is not None
    assert fits(found)
    socket = f"{found}/session_2026-11-28_11-41-13_123456_4194304/sockets/plasma_store"
    assert len(socket.encode()) <= LONGEST


def test_where_no_short_place_is_open_the_line_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", LONG)
    monkeypatch.setattr(address, "_SHORT", ("/nowhere/in/particular",))
    with pytest.raises(
        UserError, match=r"nested.*too long for Ray.*set RAY_TMPDIR to a directory of at most"
    ):
        ray_place()
