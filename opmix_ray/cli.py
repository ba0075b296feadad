"""The command line: `opmix COMMAND ...`. Exit code 0 on success, 2 on wrong input, 1 when something broke."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from opmix_ray.errors import UserError, UserErrors

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Decides what a language model should train on next.",
)
Config = Annotated[Path, typer.Argument(help="YAML file that describes the run.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key: --set train.batch_size=8", metavar="KEY=VALUE"),
]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Directory or URI of the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Address = Annotated[str | None, typer.Option(help="Ray address: auto, host:port, ray://host:port.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in the output stands.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove a run that is already in the output.")]


@app.command()
def run(
    config: Config,
    settings: Settings = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train a model and decide its mixture on the way."""
    _run(config, settings, output, resume, overwrite, address, as_json)


@app.command()
def demo(
    output: Output = "runs/demo",
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run the example that comes with the package: six domains, one decision, a few minutes on two cores."""
    from opmix_ray.resources import shipped

    _run(shipped("examples") / "quickstart.yaml", settings, output, resume, overwrite, None, as_json)


@app.command()
def prepare(config: Config, settings: Settings = None, as_json: Json = False) -> None:
    """Tokenise the data, and show tokens, leaks, and epochs at the planned mixture."""
    from opmix_ray.config import load_config

    loaded = load_config(config, settings)
    from opmix_ray.run.tables import prepared_table
    from opmix_ray.run.validate import validate

    with _progress(as_json) as progress:
        prepared = validate(loaded, config, progress.preparing)
    rows = prepared_table(loaded, prepared)
    _show(rows, rows, as_json)


@app.command()
def validate(
    config: Config, settings: Settings = None, address: Address = None, as_json: Json = False
) -> None:
    """List everything that is wrong with a run before it begins."""
    from opmix_ray.config import load_config

    loaded = _with(load_config(config, settings), None, address)
    from opmix_ray.run.cluster import connected
    from opmix_ray.run.validate import validate as check

    with _progress(as_json) as progress:
        check(loaded, config, progress.preparing)
        with connected(loaded):
            pass
    _show({"valid": True, "config": str(config)}, f"{config}: nothing wrong was found", as_json)


@app.command()
def search(
    config: Config,
    model: Annotated[
        Path | None, typer.Option(help="Directory of the checkpoint; none: the configured model.")
    ] = None,
    settings: Settings = None,
    output: Output = None,
    step: Annotated[int, typer.Option(help="Step the checkpoint is at, for the record.")] = 0,
    overwrite: Overwrite = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Make one decision for a checkpoint from anywhere; writes mixture.json."""
    from opmix_ray.config import load_config

    loaded = _with(load_config(config, settings), output, address)
    from opmix_ray.run.search import search_once

    with _progress(as_json) as progress:
        decision = search_once(loaded, model, step=step, overwrite=overwrite, progress=progress)
    _show(decision.to_dict(), decision.mixture, as_json)


@app.command()
def status(directory: Annotated[str, typer.Argument(help="Output of a run.")], as_json: Json = False) -> None:
    """Show where a run stands, what it spent, and what it would do next."""
    from opmix_ray.run.tables import run_status

    found = run_status(directory)
    _show(found, {key: value for key, value in found.items() if key != "ledger"} | found["ledger"], as_json)


@app.command()
def report(
    directory: Annotated[str, typer.Argument(help="Output of a run.")],
    figures: Annotated[bool, typer.Option("--figures", help="Write the plots as PNG and SVG too.")] = False,
    as_json: Json = False,
) -> None:
    """Write report.html again."""
    from opmix_ray.report import figures as write_figures
    from opmix_ray.report import write_report
    from opmix_ray.storage import Storage

    storage = Storage(directory)
    if not storage.exists("state.json"):
        raise UserError("is not the output of a run", file=directory, remedy="name a run's output directory")
    found: dict[str, Any] = {"report": write_report(storage)}
    if figures:
        found["figures"] = write_figures(storage)
    _show(found, found["report"], as_json)


def _run(
    config: Path, settings: list[str] | None, output: str | None, resume: bool, overwrite: bool,
    address: str | None, as_json: bool,
) -> None:  # fmt: skip
    from opmix_ray.config import load_config

    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other", remedy="give one of them")
    loaded = _with(load_config(config, settings), output, address)
    from opmix_ray.run.runner import run as run_config  # torch and Ray only for what is well-formed
    from opmix_ray.run.tables import closing_words
    from opmix_ray.storage import Storage

    with _progress(as_json) as progress:
        result = run_config(loaded, resume=resume, overwrite=overwrite, progress=progress, file=config)
    report_path = Storage(loaded.output_uri()).path("report.html")
    _show(result, closing_words(result, report_path), as_json)


def _with(config: Any, output: str | None, address: str | None) -> Any:
    update: dict[str, Any] = {}
    if output is not None:
        update["output"] = output
    if address is not None:
        update["cluster"] = config.cluster.model_copy(update={"address": address})
    return config.model_copy(update=update)


@contextmanager
def _progress(silent: bool) -> Iterator[Any]:
    from opmix_ray.run.progress import make_progress

    progress = make_progress(Console(), silent=silent)
    try:
        yield progress
    finally:
        progress.close()


def _show(value: Any, words: Any, as_json: bool) -> None:
    """Print a result for a person or for a program."""
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    elif isinstance(words, str):
        print(words)
    else:
        from opmix_ray.run.tables import print_table

        print_table(Console(), words)


def main() -> None:
    """Entry point of `opmix`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    try:
        app(standalone_mode=False)
    except UserErrors as errors:
        for error in errors.errors:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:
        from click.exceptions import Abort, ClickException

        if isinstance(error, ClickException):
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, Abort):
            sys.exit(130)
        raise
