"""A Ray that does not answer: within the time-out, through the command line."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests import support
from tests.cli.conftest import Opmix
from tests.support import ROOT, TinyRun

TIMEOUT = 1.5


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_silent_and_closed_ports(opmix: Opmix, tiny: TinyRun, silent: int, closed: int) -> None:
    for port, reason in ((silent, "no answer in time"), (closed, "connection refused")):
        began = time.monotonic()
        address = f"127.0.0.1:{port}"
        setting = f"cluster.connect_timeout={TIMEOUT}"
        line = opmix("validate", tiny.write(), "--address", address, "--set", setting).only_error()
        assert f"{tiny.file}: cluster.address = {address}: no Ray answers at this address: {reason}" in line
        assert "ray start --head" in line
        assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "address", ["head", "head:", "head:many", ":6379", "http://head:6379", "head:99999999"]
)
def test_malformed_addresses(opmix: Opmix, tiny: TinyRun, address: str) -> None:
    line = opmix("validate", tiny.write(), "--address", address).only_error()
    assert f"cluster.address = {address}: is not an address; use auto, host:port or ray://host:port" in line


@pytest.mark.slow
@pytest.mark.promise
def test_a_run_does_not_hang_at_a_silent_port(tiny: TinyRun, silent: int) -> None:
    """As a process of its own, since Ray would wait in C++ where no test could stop it."""
    output = tiny.directory / "out"
    arguments = ("run", str(tiny.write()), "-o", str(output), "--set", f"cluster.connect_timeout={TIMEOUT}")
    ended = support.opmix(*arguments, timeout=110, RAY_ADDRESS=f"127.0.0.1:{silent}")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "no Ray answers at this address: no answer in time" in ended.stderr


@pytest.mark.slow
@pytest.mark.promise
def test_auto_without_any_ray(tiny: TinyRun) -> None:
    """In namespaces of its own, where no other Ray's processes or files are to be seen."""
    new = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*new, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("no namespaces can be made here")
    hide = 'mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && exec "$@"'
    command = [sys.executable, "-m", "opmix_ray", "validate", str(tiny.write()), "--address", "auto"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [*new, "sh", "-c", hide, "sh", *command],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=110, env=environment,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert (
        "cluster.address = auto: no Ray runs on this machine; start one with `ray start --head`"
        in ended.stderr
    )
