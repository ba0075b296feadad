"""`opmix compare`: many strategies on the same work, in one table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from opmix_ray.commands.options import (
    Address,
    Config,
    Json,
    Settings,
    about,
    at_scale,
    progress_for,
)


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
    from opmix_ray.compare.plan import check_strategies
    from opmix_ray.config import load_config, with_given

    names = check_strategies(strategies.split(","))
    config = at_scale(config, scale)
    loaded = with_given(load_config(config, settings), address=address)
    from opmix_ray.commands.show import show
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
