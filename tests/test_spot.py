"""Notices of spot machines, with a server in the place of the clouds' metadata services."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from opmix_ray.spot import aws_notice, drain_command, google_notice, watch


class Metadata(BaseHTTPRequestHandler):
    """What both services answer, with a notice or without."""

    notice = False

    def do_PUT(self) -> None:
        self._answer(200 if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else 400, "the-token")

    def do_GET(self) -> None:
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "the-token":
                return self._answer(401, "")
            when = datetime.now(UTC) + timedelta(seconds=90)
            text = f'{{"action": "terminate", "time": "{when:%Y-%m-%dT%H:%M:%SZ}"}}'
            return self._answer(200 if self.notice else 404, text)
        asked = self.path == "/computeMetadata/v1/instance/preempted"
        if not asked or self.headers["Metadata-Flavor"] != "Google":
            return self._answer(403, "")
        return self._answer(200, str(self.notice).upper())

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Metadata, "notice", False)
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_no_notice_and_no_service_are_the_same(service: str) -> None:
    assert aws_notice(service) is None
    assert google_notice(service) is None
    assert aws_notice("http://127.0.0.1:1") is None
    assert google_notice("http://127.0.0.1:1") is None


@pytest.mark.seconds
def test_a_notice_is_passed_on_once(service: str) -> None:
    told: list[float] = []
    thread = threading.Thread(
        target=watch, args=((lambda: aws_notice(service), lambda: google_notice(service)), told.append, 0.02)
    )
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert told == []
    Metadata.notice = True
    thread.join(120)
    assert not thread.is_alive()
    (seconds,) = told
    assert 0 < seconds <= 90
    assert google_notice(service) == 30
    assert drain_command(seconds)[-1] == str(int(seconds))
