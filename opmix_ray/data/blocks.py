"""All blocks of a source in order: read here, or by Ray Data where there are many files and Ray runs."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from opmix_ray.data.encode import Block, Recipe
from opmix_ray.errors import UserError

MANY_FILES = 8  # from here on Ray Data reads the files side by side


def read_blocks(recipe: Recipe, on_progress: Callable[[int, int], None]) -> Iterator[Block]:
    """Every block of a source: files in order, then documents.

    Args:
        recipe: the source and what becomes of its documents.
        on_progress: called with bytes of files done (an estimate inside a file) and in all.

    Raises:
        UserError: see `Recipe.blocks`.
    """
    files = recipe.source.files
    total = sum(file.size for file in files)
    done = inside = at = 0
    for index, block in _ray_blocks(recipe) if len(files) >= MANY_FILES and _ray_runs() else _local(recipe):
        if index != at:
            done, inside, at = sum(file.size for file in files[:index]), 0, index
        inside = min(inside + block.read, files[index].size)
        on_progress(done + inside, total)
        yield block


def _local(recipe: Recipe) -> Iterator[tuple[int, Block]]:
    for index, file in enumerate(recipe.source.files):
        for block in recipe.blocks(file):
            yield index, block


def _ray_runs() -> bool:
    import ray

    return bool(ray.is_initialized())


def _ray_blocks(recipe: Recipe) -> Iterator[tuple[int, Block]]:
    """As `_local`, the files tokenised by Ray Data's workers; the order is the same.

    Whoever stops early lets the workers end by themselves, after the block that each is at: Ray 2.60 ends the driver
    ("Tried to complete task that was not pending") where Ray Data cancels a task at the moment that it completes.
    """
    import ray.data

    from opmix_ray.node import Over, here

    over: Any = Over.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]

    def row(index: int, result: Block | Exception) -> dict[str, Any]:
        return {"file": np.array([index]), "result": np.array([pickle.dumps(result)], dtype=object)}

    def tokenise(batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for index in batch["file"].tolist():
            try:
                for block in recipe.blocks(recipe.source.files[index]):
                    if ray.get(over.said.remote()):
                        return
                    yield row(index, block)
            except UserError as error:  # as a result, so that no trace of Ray's is printed around it
                yield row(index, error)
            except Exception as error:  # as well: a task that fails makes Ray Data cancel the others
                yield row(index, RuntimeError(f"{recipe.source.files[index].path}: {error!r}"))

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and progress are not ours to show
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:  # a data set keeps the context it was made in
        count = len(recipe.source.files)
        files = ray.data.from_items([{"file": index} for index in range(count)], override_num_blocks=count)
        rows = files.map_batches(tokenise, batch_size=1).iter_rows()
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
    left = iter(rows)
    try:
        for found in left:
            result = pickle.loads(found["result"])
            if isinstance(result, Exception):
                raise result
            yield int(found["file"]), result
    finally:
        ray.get(over.say.remote())
        for _ in left:
            pass
        ray.kill(over)
