"""How the command line ends: one line on stderr for each thing wrong, and an exit code.

| code | when |
|---|---|
| 0 | success |
| 1 | something broke; the traceback says where |
| 2 | wrong input, a full disk, an address that does not answer, a Ray that died, a machine without memory left |
| 3 | a run that is done, but every decision of it failed: its mixture was never decided on |
| 130, 143 | stopped by Ctrl-C, by SIGTERM; the run can be resumed |
| 141 | nobody reads the output any more |
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from opmix_ray.errors import GO_ON, ray_errors, user_errors
from opmix_ray.signals import StopSignals
from opmix_ray.visible import visible

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
