"""A run to look at: the one that trackers are tested with."""

from __future__ import annotations

from tests.trackers.conftest import run as run
