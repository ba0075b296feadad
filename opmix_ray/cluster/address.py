"""Where a Ray's files lie, and whether it answers: before Ray itself waits there for minutes, and while it is used.

A socket's path has at most 107 bytes on Linux. Ray's lie in `<place>/session_<time>_<pid>/sockets`, where `<place>` is
`ray` inside RAY_TMPDIR, TMPDIR or /tmp; batch systems set TMPDIR to long paths.

Ray speaks gRPC, which is HTTP/2: after the client's preface a server sends its settings (RFC 9113, section 3.4).
A port that is closed, silent or speaks something else is told apart without a Ray process.

Where the head is gone Ray ends a driver after a minute, and where its own process on this machine is gone a call waits
for ever, or ends this process with exit code 1: none of it can be caught. So the run is ended here, with one line that
says how to go on.
"""

from __future__ import annotations

import importlib.util
import os
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from opmix_ray.config import RunConfig
from opmix_ray.errors import GO_ON, UserError

LONGEST = 107  # bytes of a socket's path
_INSIDE = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def address_of(config: RunConfig) -> str | None:
    """The address of the cluster that is to be used; None: a Ray of our own."""
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def default_place() -> Path:
    """Where Ray puts its files unless it is told."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def fits(place: Path) -> bool:
    """Whether sockets inside have paths that are short enough."""
    return len(os.fsencode(str(place.absolute()) + _INSIDE)) <= LONGEST


def ray_place() -> Path | None:
    """The directory to give to Ray; None: its own choice fits.

    Raises:
        UserError: it does not fit, and there is no short directory that may be written to.
    """
    default = default_place()
    if fits(default):
        return None
    for name in _SHORT:
        place = Path(name) / f"ray-{os.getuid()}"
        if fits(place) and os.access(place if place.exists() else name, os.W_OK):
            return place
    raise UserError(
        f"is too long for Ray, whose sockets' paths have at most {LONGEST} bytes, and {', '.join(_SHORT)} are closed",
        file=default,
        key="TMPDIR",
        remedy=f"set RAY_TMPDIR to a directory of at most {LONGEST - len(_INSIDE) - len('/ray')} bytes",
    )


def scratch() -> list[Path]:
    """Directories outside the output that a run writes to."""
    return [Path(tempfile.gettempdir()), ray_place() or default_place()]


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # length 0, type 4, no flags, stream 0
_SETTINGS = 4
_HERE = ("localhost", "127.0.0.1", "::1")
_REMEDY = "start one with `ray start --head`, correct the address, or leave it out for a Ray of our own"


def check_address(address: str, timeout: float) -> None:
    """Make sure that something which may be Ray answers at an address.

    Args:
        address: `auto`, `host:port` or `ray://host:port`.
        timeout: seconds to wait.

    Raises:
        UserError: it is not an address, there is no Ray on this machine (`auto`), or none answers in time.
    """
    import ray  # `opmix doctor` reads this file too, and needs no Ray

    found = _auto() if address == "auto" else address
    host, port = _host_and_port(found)
    if found.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise _refused("needs Ray's client", address, "pip install 'ray[client]', or use host:port")
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # the settings would come encrypted
    # A head that listens on the machine's own address is meant by `localhost` too, as Ray sees it.
    hosts = [host, ray.util.get_node_ip_address()] if host in _HERE else [host]
    deadline = time.monotonic() + timeout
    reasons = [reason for each in hosts if (reason := _silent(each, port, deadline))]
    if len(reasons) == len(hosts):
        where = f" (found at {found})" if found != address else ""
        raise _refused(f"no Ray answers at this address{where}: {reasons[0]}", address, _REMEDY)


def _auto() -> str:
    """The address that `auto` stands for."""
    try:
        from ray._private.services import canonicalize_bootstrap_address_or_die

        return str(canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError as error:
        several = "multiple" in str(error)
        problem = "there are several Rays on this machine" if several else "no Ray runs on this machine"
        raise _refused(problem, "auto", "name one as host:port" if several else _REMEDY) from None


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("", "ray") or parts.path.strip("/"):
        raise _refused("is not an address", address, "use auto, host:port or ray://host:port")
    return host, port


def _silent(host: str, port: int, deadline: float) -> str | None:
    """Why there is no gRPC server at a port; None where there is one."""
    received = b""
    try:
        with socket.create_connection((host, port), timeout=_left(deadline)) as connection:
            connection.sendall(_PREFACE + _EMPTY_SETTINGS)
            while len(received) < 9:  # a frame's header
                connection.settimeout(_left(deadline))
                part = connection.recv(64)
                if not part:
                    return "the connection was closed"
                received += part
    except TimeoutError:
        return "no answer in time"
    except OSError as error:
        return str(error.strerror or error).lower()
    return None if received[3] == _SETTINGS else "something else than Ray answers"


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())


def _refused(problem: str, address: str, remedy: str) -> UserError:
    return UserError(problem, key="cluster.address", value=address, remedy=remedy)


EVERY = 2.0  # seconds between two looks
PATIENCE = 3  # looks in vain before it is said
LAST = 27  # looks in vain before a head is given up; Ray itself gives up after a minute
_WRONG = 2  # the exit code of a Ray that died


def _end() -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(_WRONG)


@contextmanager
def pulse(
    head: str,
    raylet: str | None = None,
    *,
    returns: bool = True,
    every: float = EVERY,
    end: Callable[[], None] = _end,
) -> Iterator[None]:
    """Say once on stderr that Ray does not answer any more, and how to go on, while a `with` lasts; then end the run.

    Args:
        head: `host:port`.
        raylet: `host:port` of the process of Ray's on this machine, which never comes back.
        returns: whether a head may come back, as KubeRay's does.
        every: seconds between two looks.
        end: ends the process.
    """
    here, over = socket.socketpair()
    arguments = (head, raylet, LAST if returns else PATIENCE, every, end, here)
    thread = threading.Thread(target=_look, args=arguments, name="opmix-pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.close()
        thread.join(timeout=1)


def _look(
    head: str, raylet: str | None, last: int, every: float, end: Callable[[], None], over: socket.socket
) -> None:
    if raylet is not None and not _answers(raylet):
        raylet = None  # it cannot be reached by this address, though Ray is there
    line: socket.socket | None = None  # held open: the system breaks it the moment that the raylet dies
    without_head = without_raylet = 0
    said = False
    with over:
        while True:
            if line is None and raylet is not None:
                line = _connect(raylet)
            ready = _first(over, line, every)
            if ready is over:
                break
            broke = line is not None and ready is line and not _heard(line)
            if broke:
                line = None
            without_head = 0 if _answers(head) else without_head + 1
            without_raylet = 0 if raylet is None or _answers(raylet) else without_raylet + 1
            if broke and without_raylet:  # a server that is there closes silent connections too
                without_raylet = PATIENCE  # a call to it now would end this process without a word
            said = said and without_head > 0
            ends = without_raylet >= PATIENCE or without_head >= last
            if not said and (ends or without_head >= PATIENCE):
                said = True
                who = "process on this machine" if without_raylet else f"head at {head}"
                _say(who, "the run ends" if ends else "if it does not come back, the run ends")
            if ends:
                end()
                break
    if line is not None:
        line.close()


def _first(over: socket.socket, line: socket.socket | None, every: float) -> socket.socket | None:
    """Of two connections the one that has something to say, `over` before `line`; None: neither in so many seconds."""
    with selectors.DefaultSelector() as selector:
        for each in (over, line):
            if each is not None:
                selector.register(each, selectors.EVENT_READ)
        ready = [key.fileobj for key, _ in selector.select(every)]
    return next((each for each in (over, line) if each in ready), None)


def _heard(line: socket.socket) -> bool:
    """Read what came; False, and the connection closed, where it has ended."""
    with suppress(OSError):
        if line.recv(4096):
            return True
    line.close()
    return False


def _say(who: str, then: str) -> None:
    print(
        f"error: Ray's {who} does not answer any more; {then}: start Ray again, and {GO_ON}",
        file=sys.stderr,
        flush=True,
    )


def _connect(address: str) -> socket.socket | None:
    """A connection; None: nothing answers."""
    host, _, port = address.rpartition(":")
    try:
        return socket.create_connection((host.strip("[]"), int(port)), timeout=5)
    except (OSError, ValueError):
        return None


def _answers(address: str) -> bool:
    if not address.rpartition(":")[2].isdigit():
        return True  # an address that is none: nothing is known
    connection = _connect(address)
    if connection is None:
        return False
    connection.close()
    return True
