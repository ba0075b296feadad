"""The command line: `opmix COMMAND ...`, and how it ends: one line on stderr for each thing wrong, and an exit code.

| code | when |
|---|---|
| 0 | success |
| 1 | something broke; the traceback says where |
| 2 | wrong input, a full disk, an address that does not answer, a Ray that died, a machine without memory left |
| 3 | a run that is done, but every decision of it failed: its mixture was never decided on |
| 130, 143 | stopped by Ctrl-C, by SIGTERM; the run can be resumed |
| 141 | nobody reads the output any more |

Torch and Ray are imported only by a command that needs them, once its configuration is well-formed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from opmix_ray.commands.begin import discover, doctor, init, memory
from opmix_ray.commands.options import (
    Address,
    Config,
    Json,
    OnceEach,
    Output,
    Settings,
    about,
    progress_for,
    show,
)
from opmix_ray.commands.runs import Web, compare, export, page_of, report, study, watch
from opmix_ray.commands.sweep import design, fit, predict
from opmix_ray.errors import GO_ON, UserError, UserErrors, ray_errors, user_errors
from opmix_ray.harmless import visible
from opmix_ray.signals import StopSignals
from opmix_ray.version import __version__

BROKE, WRONG, UNDECIDED, BROKEN_PIPE = 1, 2, 3, 141
_STOPPED = f"stopped; {GO_ON}"
_USAGE: Any = typer.BadParameter.__mro__[2]  # of all errors in options and arguments; typer has its own click


def exit_code(call: Callable[[], Any]) -> int:
    """Run `call`, say on stderr what went wrong, and return the exit code.

    Args:
        call: the command; an int that it returns is the exit code.
    """
    signals = StopSignals()
    raised = False
    try:
        returned = call()
        sys.stdout.flush()
        code = returned if isinstance(returned, int) else 0
    except BaseException as error:
        code, raised = _code(error), True
        if code == BROKE and not signals.stopped():
            traceback.print_exception(error)
    stopped = signals.stopped()
    signals.close()
    if stopped and (code != 0 or raised):
        code = 128 + stopped
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print(_STOPPED, file=sys.stderr)
    _flush()
    return code


def _code(error: BaseException) -> int:
    """The exit code of what was raised; the user's own errors are printed."""
    if _is_broken_pipe(error):
        return BROKEN_PIPE
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        # Ray leaves with the number of the signal after SIGTERM; what left with 0 after Ctrl-C is seen by `exit_code`.
        if error.code == signal.SIGTERM:
            return 128 + signal.SIGTERM
        return error.code if isinstance(error.code, int) else BROKE if error.code else 0
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, _USAGE):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "opmix"
        _say(f"{_sentence(error.format_message())}; see `{command} --help`")
        return WRONG
    found = user_errors(error) or ray_errors(error)
    for each in found:
        _say(str(each))
    return WRONG if found else BROKE


def _sentence(text: str) -> str:
    """Click's words as one line without a full stop: `No such option: --sett (Did you mean --set?)`."""
    return " ".join(text.split()).rstrip(".")


def _say(text: str) -> None:
    print(f"error: {visible(text)}", file=sys.stderr)


def _is_broken_pipe(error: BaseException | None) -> bool:
    """Whether nobody reads the output; rich and typer turn that into a SystemExit."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
            return True
        if not isinstance(error, SystemExit):
            return False
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _flush() -> None:
    """Write out what is left; to nowhere if nobody reads it, since Python would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Decides what a language model should train on next.",
)
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run that is in the output.")]
Price = Annotated[
    float | None,
    typer.Option(
        "--price-per-hour",
        min=0,
        help="Price of an hour of the machine or cluster, to say what the run will cost.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove a run that is already in the output.")]


@app.callback()
def opmix(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version.")] = False,
) -> None:
    """Decide what a language model should train on next."""
    if version:
        print(f"opmix {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    config: Config,
    settings: Settings = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    address: Address = None,
    base: Annotated[
        str | None,
        typer.Option("--continue", help="Finished run to continue: its model, mixture, reading positions."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check everything and say what the run will cost.")
    ] = False,
    price: Price = None,
    web: Web = False,
    as_json: Json = False,
) -> None:
    """Train a model and decide its mixture on the way."""
    if dry_run:
        _validate(config, settings, output, address, price, as_json, base)
        return
    if price is not None:
        raise UserError("needs --dry-run", key="--price-per-hour", value=price, remedy="give both, or none")
    _run(config, settings, output, resume, overwrite, address, as_json, base, web)


@app.command()
def demo(
    output: Output = "runs/demo",
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run the example that comes with the package, in a few minutes."""
    from opmix_ray.paths import shipped

    _run(shipped("examples") / "demo.yaml", settings, output, resume, overwrite, None, as_json)


app.command()(init)
app.command()(discover)
app.command()(compare)
app.command()(export)
app.command()(doctor)
app.command()(memory)
app.command()(watch)
app.command()(report)
app.command()(study)
app.command()(design)
app.command()(fit)
app.command()(predict)


@app.command()
def prepare(config: Config, settings: Settings = None, as_json: Json = False) -> None:
    """Tokenise the data, and show tokens, leaks and epochs."""
    from opmix_ray.config import load_config

    loaded = load_config(config, settings)
    from opmix_ray.commands.progress import prepared_table
    from opmix_ray.data.prepare import split_words
    from opmix_ray.runner.validate import validate

    with about(config), progress_for(as_json) as progress:
        prepared = validate(loaded, config, progress.preparing)
        for line in split_words(prepared):
            progress.message(line)
    rows = prepared_table(loaded, prepared)
    show(rows, rows, as_json)


@app.command()
def validate(
    config: Config,
    settings: Settings = None,
    address: Address = None,
    price: Price = None,
    as_json: Json = False,
) -> None:
    """List everything that is wrong with a run, or what it will cost.

    Nothing is tokenised before the configuration is found right; one training step is timed.
    """
    _validate(config, settings, None, address, price, as_json)


@app.command()
def search(
    config: Config,
    model: Annotated[
        Path | None, typer.Option(help="Directory of the checkpoint; none: the configured model.")
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(
            help="What it was trained on: mixture.json or another trainer's file; none: as the first stage starts."
        ),
    ] = None,
    settings: Settings = None,
    output: Output = None,
    step: Annotated[int, typer.Option(help="Step the checkpoint is at, for the record.")] = 0,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Also find what each set with a weight costs the others.")
    ] = False,
    overwrite: Overwrite = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Make one decision for a checkpoint from anywhere."""
    from opmix_ray.config import load_config, with_given

    loaded = load_config(config, [*_old_mixture(mixture), *(settings or [])])
    loaded = with_given(loaded, output=output, address=address)
    from opmix_ray.cluster.nursery import begin_ahead

    begin_ahead(loaded)
    from opmix_ray.runner.search import search_once

    with about(config), progress_for(as_json) as progress:
        decision = search_once(
            loaded, model, step=step, overwrite=overwrite, pareto=pareto, progress=progress
        )
    show(decision.to_dict(), decision.mixture, as_json)
    if "front" in decision.details and not as_json:
        from opmix_ray.commands.progress import front_table

        show(None, front_table(decision.details["front"]), as_json)


@app.command()
def status(directory: Annotated[str, typer.Argument(help="Output of a run.")], as_json: Json = False) -> None:
    """Show where a run stands, what it spent and what comes next."""
    from opmix_ray.commands.follow import run_status, status_words

    found = run_status(directory)
    show(found, status_words(found), as_json)


def _run(
    config: Path, settings: list[str] | None, output: str | None, resume: bool, overwrite: bool,
    address: str | None, as_json: bool, base: str | None = None, web: bool = False,
) -> None:  # fmt: skip
    from opmix_ray.config import load_config, with_given

    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other", remedy="give one of them")
    loaded = with_given(load_config(config, settings), output=output, address=address, base=base)
    from opmix_ray.cluster.nursery import begin_ahead

    begin_ahead(loaded)
    from opmix_ray.commands.progress import closing_words
    from opmix_ray.runner.runner import run as run_config  # torch and Ray only for what is well-formed
    from opmix_ray.storage import Storage

    with about(config), page_of(loaded.output_uri(), web), progress_for(as_json) as progress:
        result = run_config(loaded, resume=resume, overwrite=overwrite, progress=progress, file=config)
    report_path = Storage(loaded.output_uri()).path("report.html")
    show(result, closing_words(result, report_path), as_json)
    failed = [decision["reason"] for decision in result["decisions"] if decision.get("failed")]
    if failed and len(failed) == len(result["decisions"]):
        typer.echo(
            f"warning: every decision failed, so that the mixture was never decided on: {failed[-1]}",
            err=True,
        )
        raise typer.Exit(UNDECIDED)


for _command in app.registered_commands:
    _command.cls = OnceEach


def _validate(
    config: Path, settings: list[str] | None, output: str | None, address: str | None, price: float | None,
    as_json: bool, base: str | None = None,
) -> None:  # fmt: skip
    from opmix_ray.config import load_partly, with_given

    loaded, errors = load_partly(config, settings)
    if loaded is None:
        raise UserErrors(errors)
    loaded = with_given(loaded, output=output, address=address, base=base)
    from opmix_ray.runner.validate import examine

    found: dict[str, Any] = {}
    with progress_for(as_json) as progress:
        try:
            found = examine(loaded, config, progress.preparing, wrong=bool(errors))
        except UserError as error:
            errors += [one.within(config) for one in user_errors(error)]
    if errors:
        raise UserErrors(errors)
    from opmix_ray.cluster.memory_check import check_memory, memory_words
    from opmix_ray.commands.follow import cost_words
    from opmix_ray.runner.base import resolved

    with resolved(loaded) as run:
        checked = check_memory(run.config)
    checked["warnings"] += found["warnings"]
    cost = found["cost"]
    if price is not None:
        hours = None if cost["seconds"] is None else cost["seconds"]["total"] / 3600
        cost["price"] = None if hours is None else price * hours
    words = f"{config}: nothing wrong was found\n{cost_words(cost, price)}\n{memory_words(checked)}"
    show({"valid": True, "config": str(config), "cost": cost, **checked}, words, as_json)


def _old_mixture(file: str | None) -> list[str]:
    """Settings with which the mixture in a file, named from the working directory, is the one in force."""
    if file is None:
        return []
    place = file if "://" in file else str(Path(os.path.expanduser(file)).absolute())
    return [f"base.mixture={json.dumps(place)}", "stages.0.start=carry"]


def main() -> None:
    """Entry point of `opmix`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune would end its part and go on
    if "_OPMIX_COMPLETE" in os.environ:  # the shell asks for words, which is no command
        app(prog_name="opmix")
    code = exit_code(lambda: app(standalone_mode=False, prog_name="opmix"))
    if code > 128:  # stopped: Ray is shut down by now, and what its libraries do at exit can crash
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
