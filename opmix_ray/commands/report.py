"""`opmix report`: write a run's page again, or one page that compares several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opmix_ray.commands.options import Json
from opmix_ray.errors import UserError


def report(
    directories: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="Output of a run; several are compared.", show_default=False),
    ],
    figures: Annotated[bool, typer.Option("--figures", help="Write the plots as PNG and SVG too.")] = False,
    open_it: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write report.html again, or compare runs in comparison.html.

    A comparison goes into the output of the first run, which the others are compared with.
    """
    from opmix_ray.commands.show import show
    from opmix_ray.compare.runs import write_comparison
    from opmix_ray.report import figures as write_figures
    from opmix_ray.report import write_report
    from opmix_ray.storage import Storage

    storages = [Storage(directory) for directory in directories]
    for storage, directory in zip(storages, directories, strict=True):
        if not storage.exists("state.json"):
            raise UserError(
                "is not the output of a run", file=directory, remedy="name a run's output directory"
            )
    if open_it and not storages[0].is_local:
        raise UserError(
            "shows a page that lies on this machine", key="--open", value=directories[0],
            remedy="leave it out and fetch the page, or name a local directory",
        )  # fmt: skip
    if len(storages) > 1:
        found: dict[str, Any] = write_comparison(storages)
        words = [found["verdict"], found["report"]]
    else:
        found = {"report": write_report(storages[0])}
        words = [found["report"]]
    if figures:
        found["figures"] = [path for storage in storages for path in write_figures(storage)]
        words += found["figures"]
    show(found, "\n".join(words), as_json)
    if open_it:
        _open(found["report"])


def _open(page: str) -> None:
    import webbrowser

    if not webbrowser.open(Path(page).absolute().as_uri()):
        raise UserError(
            "there is no browser on this machine", key="--open", remedy=f"leave it out and open {page}"
        )
