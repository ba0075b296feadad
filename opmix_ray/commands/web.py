"""A run as a page that follows it: the standard library's server, one page, and what changed of it.

with serving("runs/mine", host="127.0.0.1", port=None) as address:
    ...                        # http://127.0.0.1:8790/, until the `with` ends
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from opmix_ray.commands.follow import Follower, Snapshot
from opmix_ray.errors import UserError, first_line
from opmix_ray.report.gather import RunFiles, gather
from opmix_ray.report.page import Now, fragment, live_page, waiting
from opmix_ray.storage import Storage

PORT = 8790  # asked for first where none is named
COOKIE = "opmix"
_LOG = logging.getLogger(__name__)
LEAST_PAUSE = 1.0  # seconds between two looks at a run, whoever asks
REST = 4.0  # and at least so many times what the last look took: a run must not feel that it is watched


class Page:
    """A run's page, made again when somebody asks and some time has passed.

    Args:
        directory: the run's output, local or a URI; there may be none yet.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._content, self._until = "", 0.0

    @property
    def title(self) -> str:
        """For the browser's tab."""
        return self._directory.rstrip("/").rpartition("/")[2]

    def content(self) -> str:
        """HTML of what is known now; a run that is not there or damaged is a sentence on the page."""
        with self._lock:
            began = time.monotonic()
            if began >= self._until:
                try:
                    self._content = look(self._directory)
                except UserError as error:
                    self._content = waiting(str(error))
                took = time.monotonic() - began
                self._until = time.monotonic() + max(LEAST_PAUSE, REST * took)
            return self._content


def look(directory: str) -> str:
    """The page's content for a run as it stands.

    Raises:
        UserError: there is no run yet, or a file of it is damaged.
    """
    shot, run = Follower(directory).snapshot(), gather(Storage(directory))
    now = Now(
        shot.doing, shot.ended, shot.step, shot.steps, shot.loss, shot.tokens_per_second, _left(shot, run)
    )
    return fragment(run, now)


def _left(shot: Snapshot, run: RunFiles) -> float | None:
    """Seconds of training that are left at the speed of the last row."""
    if not shot.tokens_per_second or run.config is None:
        return None
    tokens = (shot.steps - shot.step) * run.config.train.batch_size * run.config.data.seq_len
    return tokens / shot.tokens_per_second


@contextmanager
def serving(directory: str, *, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Serve a run's page for the time of a `with`, and give its address.

    Args:
        directory: the run's output.
        host: to listen at; beyond this machine the address holds a token, and who has none sees nothing.
        port: None: 8790, or any free one where that is taken.

    Raises:
        UserError: nothing can listen there.
    """
    token = None if _is_local(host) else secrets.token_urlsafe(18)
    page = Page(directory)
    server = _listen(host, port, lambda *given: _Handler(page, token, *given))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_address[1]}/" + (f"?token={token}" if token else "")
    finally:
        server.shutdown()
        server.server_close()


def _is_local(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A request that fails is a line in the log, not a traceback among a run's own lines."""
        _LOG.warning("the page failed: %s", first_line(sys.exception() or RuntimeError("unknown")))


class _Server6(_Server):
    address_family = socket.AF_INET6


def _listen(
    host: str, port: int | None, handler: Callable[..., BaseHTTPRequestHandler]
) -> ThreadingHTTPServer:
    kind = _Server6 if ":" in host else _Server
    for number in [PORT, 0] if port is None else [port]:
        try:
            return kind((host, number), handler)  # type: ignore[arg-type]
        except OSError as error:
            if port is None and number == PORT and not isinstance(error, socket.gaierror):
                continue
            key, value = (
                ("--host", host) if port is None or isinstance(error, socket.gaierror) else ("--port", port)
            )
            remedy = (
                "name an address of this machine" if key == "--host" else "name another port, or leave it out"
            )
            raise UserError(
                f"cannot be listened at: {error.strerror}", key=key, value=value, remedy=remedy
            ) from None
    raise AssertionError("the last port returns or raises")


class _Handler(BaseHTTPRequestHandler):
    """`/` is the page, `/now` what changes of it; everything else is not there."""

    server_version, sys_version, timeout = "opmix", "", 10

    def __init__(self, page: Page, token: str | None, *given: object) -> None:
        self._page, self._token = page, token
        super().__init__(*given)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if not self._host_is_ours():
            return self._refuse("this page is asked for by another name than its own")
        if self._token is not None and not self._known(parse_qs(asked.query).get("token", [""])[0]):
            return self._refuse("a token is needed: take the address that the command printed")
        if asked.path == "/" and "token=" in asked.query and self._token is not None:
            cookie = f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"  # and out of the address
            return self._send(HTTPStatus.SEE_OTHER, "", {"Location": "/", "Set-Cookie": cookie})
        if asked.path == "/":
            return self._send(HTTPStatus.OK, live_page(self._page.title, self._page.content()))
        if asked.path == "/now":
            content = self._page.content()
            tag = f'"{hashlib.blake2b(content.encode(), digest_size=12).hexdigest()}"'
            if self.headers.get("If-None-Match") == tag:
                return self._send(HTTPStatus.NOT_MODIFIED, "", {"ETag": tag})
            return self._send(HTTPStatus.OK, content, {"ETag": tag})
        return self._send(HTTPStatus.NOT_FOUND, "there is / and nothing else\n", kind="text/plain")

    do_HEAD = do_GET

    def _host_is_ours(self) -> bool:
        """Without a token, only by a name of this machine: other pages must not reach it by a name of theirs."""
        if self._token is not None:
            return True
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        return _is_local(name)

    def _known(self, given: str) -> bool:
        assert self._token is not None
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        tried = [given, cookie.value if cookie is not None else ""]
        return any(hmac.compare_digest(each.encode(), self._token.encode()) for each in tried)

    def _refuse(self, why: str) -> None:
        self._send(HTTPStatus.FORBIDDEN, f"{why}\n", kind="text/plain")

    def _send(
        self, status: HTTPStatus, text: str, headers: dict[str, str] | None = None, kind: str = "text/html"
    ) -> None:
        body = text.encode()
        self.send_response(status)
        common = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in {**common, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(BrokenPipeError, ConnectionResetError):  # the browser has gone
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not written into the terminal."""
