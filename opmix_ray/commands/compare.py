"""`opmix compare`: many strategies on the same work, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opmix_ray.errors import UserErrors, user_errors


def compare(
    config: Annotated[Path, typer.Argument(help="YAML file that describes the run.", show_default=False)],
    strategies: Annotated[
        str, typer.Option(help="Names, separated by commas; the first one is the baseline.")
    ] = "proportional,uniform,opmix",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy.")] = 3,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Directory or URI of the results.")
    ] = "runs/compare",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key: --set train.batch_size=8", metavar="KEY=VALUE"),
    ] = None,
    equal_compute: Annotated[
        bool,
        typer.Option("--equal-compute", help="Shorten runs that search, so that all cost the same FLOPs."),
    ] = False,
    parallel: Annotated[int, typer.Option(min=1, help="Runs at a time; needs a cluster's address.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the comparison in the output.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the comparison that is in the output.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray address: auto, host:port, ray://host:port.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON and nothing else.")
    ] = False,
) -> None:
    """Run several strategies with several seeds, and compare them.

    One table: quality, forgetting, every cost.
    """
    from opmix_ray.compare.plan import check_strategies
    from opmix_ray.config import load_config

    names = check_strategies(strategies.split(","))
    loaded = load_config(config, settings)
    if address is not None:
        loaded = loaded.model_copy(update={"cluster": loaded.cluster.model_copy(update={"address": address})})
    from opmix_ray.commands.show import console, show
    from opmix_ray.compare.run import PAGE, compare
    from opmix_ray.compare.table import table_rows
    from opmix_ray.run.progress import make_progress
    from opmix_ray.storage import Storage

    progress = make_progress(console(), silent=as_json)
    try:
        content: dict[str, Any] = compare(
            loaded, names, seeds=seeds, output=output, resume=resume, overwrite=overwrite,
            equal_compute=equal_compute, parallel=parallel, progress=progress,
        )  # fmt: skip
    except Exception as error:
        found = user_errors(error)
        if not found:
            raise
        raise UserErrors([one.within(config) for one in found]) from None
    finally:
        progress.close()
    show(content, table_rows(content), as_json)
    if not as_json:
        show(None, f"page      {Storage(output).path(PAGE)}", False)
