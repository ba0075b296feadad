"""What several commands share: how they print, their options and their surroundings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from opmix_ray.errors import UserError, UserErrors, user_errors
from opmix_ray.harmless import plain, visible

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """As wide as the terminal; lines are not folded where there is none."""
    from opmix_ray.commands.console import PlainConsole  # rich takes a third of a second to import

    if sys.stdout.isatty():
        return PlainConsole()
    return PlainConsole(width=1000, no_color=True, force_terminal=False)


def show(value: Any, words: Any, as_json: bool) -> None:
    """Print a result.

    Args:
        value: for a program.
        words: for a person: text, or a table as a list of rows or a mapping.
        as_json: which of the two.
    """
    if as_json:
        print(visible(json.dumps(plain(value), ensure_ascii=False, allow_nan=False)))
    elif isinstance(words, str):
        print(visible(words))
    else:
        from opmix_ray.commands.console import print_table

        print_table(console(), words)


class OnceEach(TyperCommand):
    """A command that refuses an option with a value given twice, of which Typer would take the last without a word."""

    def make_parser(self, ctx: Any) -> Any:
        """Typer's own, which then looks at what came several times."""
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, left, order = parse(args)
            for option in order:
                once = option.param_type_name == "option" and not (
                    option.multiple or getattr(option, "is_flag", False)
                )
                if once and order.count(option) > 1:
                    raise UserError("is given twice", key=option.opts[0], remedy="give it once")
            return values, left, order

        parser.parse_args = parse_args
        return parser


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
