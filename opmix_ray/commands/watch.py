"""`opmix watch`: follow a run in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from opmix_ray.commands.options import RunOutput


def watch(
    directory: RunOutput,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each change.")] = False,
) -> None:
    """Follow a run in the terminal until it ends.

    The exit code is 1 if it was stopped before it was finished.
    """
    from opmix_ray.commands.follow import follow
    from opmix_ray.commands.show import console

    ended = follow(directory, interval, console(), as_json=as_json)
    if ended != "finished":
        raise typer.Exit(1)
