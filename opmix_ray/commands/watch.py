"""`opmix watch`: follow a run in the terminal, and in a browser."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from opmix_ray.commands.options import RunOutput
from opmix_ray.errors import UserError

Web = Annotated[
    bool, typer.Option("--web", help="Serve a page that follows the run, at an address of this machine.")
]


def watch(
    directory: RunOutput,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each change.")] = False,
    web: Web = False,
    host: Annotated[
        str | None, typer.Option(help="Where the page listens; beyond 127.0.0.1 its address holds a token.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the page; none: 8790 or a free one.")
    ] = None,
) -> None:
    """Follow a run in the terminal until it ends.

    The exit code is 1 if it was stopped before it was finished. A page is served on until Ctrl-C.
    """
    from opmix_ray.commands.follow import follow
    from opmix_ray.commands.show import console

    if not web and (host is not None or port is not None):
        key, value = ("--host", host) if host is not None else ("--port", port)
        raise UserError(
            "is where a page is served", key=key, value=value, remedy="add --web, or leave it out"
        )
    with page_of(directory, web, host, port):
        ended = follow(directory, interval, console(), as_json=as_json)
        if web:
            _until_stopped(ended)
    if ended != "finished":
        raise typer.Exit(1)


@contextmanager
def page_of(directory: str, web: bool, host: str | None = None, port: int | None = None) -> Iterator[None]:
    """Serve a run's page for the time of a `with`, and say where; on stderr, since what is printed may be JSON."""
    if not web:
        yield
        return
    from opmix_ray.commands.web import serving

    with serving(directory, host=host or "127.0.0.1", port=port) as address:
        print(f"page      {address}", file=sys.stderr, flush=True)
        yield


def _until_stopped(ended: str) -> None:
    print(f"{ended}; the page is served until Ctrl-C", file=sys.stderr, flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
