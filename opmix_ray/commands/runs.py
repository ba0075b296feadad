"""What there is of runs: `opmix compare`, `opmix report`, `opmix watch`, `opmix export` and `opmix study`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from opmix_ray.commands.options import (
    Address,
    Config,
    Json,
    RunOutput,
    Settings,
    about,
    at_scale,
    console,
    progress_for,
    show,
)
from opmix_ray.errors import UserError


def compare(
    config: Config,
    strategies: Annotated[
        str, typer.Option(help="Names, separated by commas; the first one is the baseline.")
    ] = "proportional,uniform,opmix",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy.")] = 3,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Directory or URI of the results.")
    ] = "runs/compare",
    settings: Settings = None,
    equal_compute: Annotated[
        bool,
        typer.Option("--equal-compute", help="Shorten runs that search, so that all cost the same FLOPs."),
    ] = False,
    cyclic: Annotated[
        bool,
        typer.Option("--cyclic", help="Every seed begins with the domains of another stage (cyclic orders)."),
    ] = False,
    scale: Annotated[
        str | None, typer.Option(help="Take NAME.<scale>.yaml, the same setting at another size.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Runs at a time, on one cluster or machine.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the comparison that is in the output.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the comparison that is in the output.")
    ] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Run several strategies with several seeds, and compare them.

    One table: quality, forgetting, every cost.
    """
    from opmix_ray.compare.run import check_strategies
    from opmix_ray.config import load_config, with_given

    names = check_strategies(strategies.split(","))
    config = at_scale(config, scale)
    loaded = with_given(load_config(config, settings), address=address)
    from opmix_ray.compare.run import PAGE, compare
    from opmix_ray.compare.summary import legend, table_rows
    from opmix_ray.storage import Storage

    with about(config), progress_for(as_json) as progress:
        content: dict[str, Any] = compare(
            loaded, names, seeds=seeds, output=output, resume=resume, overwrite=overwrite,
            equal_compute=equal_compute, cyclic=cyclic, parallel=parallel, progress=progress,
        )  # fmt: skip
    show(content, table_rows(content), as_json)
    if not as_json:
        show(None, legend(content), False)
        show(None, f"page      {Storage(output).path(PAGE)}", False)


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


FORMATS = "megatron, megatron-energon, olmo-core, nemo, torchtitan, llamafactory, axolotl, datasets, streaming or olmix"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Output of a run, a search or a fit, or a mixture.json.", show_default=False
        ),
    ],
    format: Annotated[str, typer.Option("--format", "-f", help=f"{FORMATS}.", show_default=False)],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File or directory to write; none: DIR/export/FORMAT."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration that says where the data are; none: the one in DIR.")
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path", help="Where the trainer finds a domain: --path code=/data/code", metavar="NAME=PATH"
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="What the trainer's samples are: documents, or tokens where all have one length; none: the format's."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens the trainer is to train on; none: those of the stage.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a mixture in another trainer's own format."""
    from opmix_ray.commands.export import export as write

    if unit not in (None, "tokens", "documents"):
        raise UserError("must be tokens or documents", key="--unit", value=unit, remedy="mend it")
    counts = cast(Literal["tokens", "documents"] | None, unit)
    found = write(source, format, output, config=config, paths=path or [], unit=counts, tokens=tokens)
    show(asdict(found), "\n".join([*found.files, *(f"- {note}" for note in found.notes)]), as_json)


def study(
    directory: RunOutput,
    output: Annotated[Path, typer.Option("--output", "-o", help="Journal file to write.")] = Path(
        "study.log"
    ),
    as_json: Json = False,
) -> None:
    """Write every decision as an Optuna study, for optuna-dashboard."""
    from opmix_ray.commands.export import write_studies

    written = write_studies(directory, output)
    words = "\n".join(f"{name}: {count} trials" for name, count in written.items())
    show({"file": str(output), "studies": written}, f"{words}\nnext: optuna-dashboard {output}", as_json)
