"""Reads TensorBoard's event files: records of length, checksum, message, checksum."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


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
