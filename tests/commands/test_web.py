"""A run's page over HTTP: what it shows, who may see it, what it says before there is a run and when one is damaged."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from opmix_ray.commands import web
from opmix_ray.commands.web import serving
from opmix_ray.errors import UserError
from opmix_ray.output.lock import locked
from opmix_ray.output.state import sealed
from opmix_ray.storage import Storage
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.report.reading import Page
from tests.report.synthetic import PLAIN, make_run


@pytest.fixture
def going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A run that has made one decision of two and goes on."""
    monkeypatch.setattr(web, "LEAST_PAUSE", 0.0)
    monkeypatch.setattr(web, "REST", 0.0)
    run = make_run(tmp_path / "run", decisions=2, trials=6, domains=PLAIN[:3], steps=120, bad_rows=False)
    for name in ("result.json", "decisions/001/decision.json", "decisions/001/law.json"):
        run.delete(name)
    state = run.read_json("state.json") | {"finished": False, "done": 3, "step": 80}
    run.write_json("state.json", sealed(state))
    rows = [line for line in run.lines("metrics.jsonl") if json.loads(line)["step"] <= 80]
    run.write_text("metrics.jsonl", "".join(f"{line}\n" for line in rows))
    with locked(run):
        yield run


def ask(address: str, path: str = "/", **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text; a redirect is not followed."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=120)
    connection.request(
        "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return found


@pytest.fixture
def address(going: Storage) -> Iterator[str]:
    with serving(going.uri, port=None) as found:
        yield found


def test_the_page_shows_the_moment_and_the_report(address: str) -> None:
    status, headers, text = ask(address)
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    page = Page(text)
    assert page.errors == []
    for words in ("80 of 120", "of training left", "Decision 001, not finished", "6 candidates scored"):
        assert words in page.text
    for name in ("side-by-side", "mixture", "loss", "decisions", "cost"):
        assert f'id="{name}"' in text


def test_what_changes_is_sent_and_what_does_not_is_not(address: str, going: Storage) -> None:
    _, headers, before = ask(address, "/now")
    assert ask(address, "/now", If_None_Match=headers["ETag"])[0] == 304
    row = json.loads(next(line for line in going.lines("metrics.jsonl") if '"train"' in line))
    going.append("metrics.jsonl", json.dumps(row | {"step": 97, "loss": 1.2345}) + "\n")
    status, _, after = ask(address, "/now", If_None_Match=headers["ETag"])
    assert status == 200
    assert "1.2345" in after
    assert "97 of 120" in Page(after).text
    assert "1.2345" not in before


def test_there_is_nothing_else(address: str, going: Storage) -> None:
    for path in ("/state.json", "/../state.json", f"/{going.uri}/config.yaml", "/now/x", "//now/.."):
        assert ask(address, path)[0] in (403, 404)


def test_another_name_of_this_machine_is_refused(address: str) -> None:
    assert ask(address, Host="evil.example")[0] == 403
    assert ask(address, Host="localhost:1")[0] == 200


def test_beyond_this_machine_a_token_is_needed(going: Storage) -> None:
    with serving(going.uri, host="0.0.0.0") as address:
        place = urlsplit(address)
        assert re.fullmatch(r"token=[\w-]{20,}", place.query)
        here = f"http://127.0.0.1:{place.port}/"
        for path, headers in (
            ("/", {}), ("/now", {}), ("/?token=", {}), ("/?token=wrong", {}), ("/now", {"Cookie": "opmix=wrong"}),
            ("/", {"Cookie": "opmix=\"\u00e9;;;"}),
        ):  # fmt: skip
            status, _, text = ask(here, path, **headers)
            assert status == 403
            assert "synthetic" not in text
        status, headers, _ = ask(here, f"/?{place.query}")
        assert (status, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert "HttpOnly" in headers["Set-Cookie"]
        assert ask(here, "/", Cookie=cookie)[0] == 200
        assert ask(here, "/now", Cookie=cookie)[0] == 200


def test_before_there_is_a_run_the_page_waits(tmp_path: Path) -> None:
    with serving(str(tmp_path / "none")) as address:
        assert "is not the output of a run" in ask(address)[2]


def test_a_damaged_run_is_a_sentence_on_the_page(address: str, going: Storage) -> None:
    going.write_text("state.json", "{")
    status, _, text = ask(address, "/now")
    assert status == 200
    assert "state.json" in text


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_a_host_that_is_not_ours_is_one_line(going: Storage, host: str) -> None:
    with pytest.raises(UserError, match="cannot be listened at") as found, serving(going.uri, host=host):
        pass
    assert found.value.key == "--host"


def test_a_port_that_is_taken_is_one_line_if_named_and_another_if_not(going: Storage) -> None:
    with serving(going.uri) as first, serving(going.uri) as second:
        assert urlsplit(first).port != urlsplit(second).port
        taken = urlsplit(second).port
        with pytest.raises(UserError, match="cannot be listened at") as found, serving(going.uri, port=taken):
            pass
        assert found.value.key == "--port"


def test_host_without_web_is_refused(going: Storage, opmix: Opmix) -> None:
    ended = opmix("watch", going.uri, "--host", "0.0.0.0")
    assert ended.code == 2
    assert "--web" in ended.only_error()


def test_the_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", decisions=1, trials=6, domains=PLAIN[:3], steps=60)
    command = [sys.executable, "-m", "opmix_ray", "watch", run.uri, "--web"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as job:  # fmt: skip
        assert job.stderr is not None
        address = job.stderr.readline().split()[1]
        assert "finished" in job.stderr.readline()
        assert "Finished" in ask(address)[2]
        time.sleep(0.2)
        job.send_signal(signal.SIGINT)
        assert job.wait(300) == 0
