"""A run to look at, and TensorBoard's event files read back: records of length, checksum, message, checksum."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from opmix_ray.storage import Storage
from tests.report.synthetic import PLAIN, make_run


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    """A finished run with two decisions over three domains."""
    return make_run(tmp_path / "run", decisions=2, trials=6, domains=PLAIN[:3], steps=60)


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """name -> step -> value, of all event files in a directory; a later value of a step replaces an earlier one."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for file in sorted(directory.glob("events.out.tfevents.*")):
        data, position = file.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack("<Q", data[position : position + 8])
            event = Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
    return dict(found)
