"""What is said when Ray goes away, or ends a worker."""

from __future__ import annotations

import socket
import time

import pytest
import ray

from opmix_ray.cli import exit_code
from opmix_ray.cluster.address import pulse


def test_a_head_that_is_gone_is_said_once_with_the_way_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pulse(address, every=0.02):
            time.sleep(0.3)
            assert capsys.readouterr().err == ""
            server.close()
            said, deadline = "", time.monotonic() + 120
            while not said:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                said = capsys.readouterr().err
            time.sleep(0.1)  # some looks more
    said += capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"error: Ray's head at {address} does not answer any more")
    assert "--resume" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
            "memory monitor",
        ),
        (ray.exceptions.LocalRayletDiedError(), "Ray went away under the run"),
        (ray.exceptions.RaySystemError("System error: Broken pipe"), "Ray went away under the run"),
    ],
)
def test_what_ray_could_not_do_is_one_line_with_the_way_to_go_on(
    error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("a trial failed") from cause

    assert exit_code(fail) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert "--resume goes on from the last checkpoint" in said
