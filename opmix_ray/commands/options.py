"""Options and surroundings that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from opmix_ray.commands.show import console
from opmix_ray.errors import UserError, UserErrors, user_errors

Config = Annotated[Path, typer.Argument(help="YAML file that describes the run.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key: --set train.batch_size=8", metavar="KEY=VALUE"),
]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Directory or URI of the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Address = Annotated[str | None, typer.Option(help="Ray address: auto, host:port, ray://host:port.")]
RunOutput = Annotated[
    str, typer.Argument(metavar="DIR", help="Output of a run, local or a URI.", show_default=False)
]


def at_scale(config: Path, scale: str | None) -> Path:
    """The file of the same setting at another size, which lies next to it: `a.gpu.yaml` of `a.yaml` for `gpu`.

    Raises:
        UserError: there is none.
    """
    if scale is None:
        return config
    found = config.with_suffix(f".{scale}{config.suffix}")
    if not found.exists():
        remedy = f"leave it out, or write the setting at that size to {found.name}"
        raise UserError("does not exist", file=found, key="--scale", value=scale, remedy=remedy)
    return found


@contextmanager
def progress_for(silent: bool) -> Iterator[Any]:
    """What a person sees of a long command, for the time of a `with`."""
    from opmix_ray.commands.progress import make_progress

    progress = make_progress(console(), silent=silent)
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def about(config: Path) -> Iterator[None]:
    """Let errors that name a key but no file name the configuration."""
    try:
        yield
    except Exception as error:
        found = user_errors(error)
        if not found:
            raise
        raise UserErrors([one.within(config) for one in found]) from None
