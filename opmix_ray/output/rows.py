"""Rows of metrics.jsonl: what was trained, and what was measured on held-out text."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12

from opmix_ray.output.state import METRICS
from opmix_ray.record import read_records
from opmix_ray.storage import Storage


@with_config(ConfigDict(extra="allow"))
class TrainRow(TypedDict):
    """What every row about training holds; there is more."""

    kind: Literal["train"]
    step: int
    loss: float
    tokens_per_second: float
    learning_rate: NotRequired[float]
    delivered: NotRequired[dict[str, int]]


@with_config(ConfigDict(extra="allow"))
class EvaluationRow(TypedDict):
    """What every row about an evaluation holds; there is more."""

    kind: Literal["evaluation"]
    step: int
    losses: dict[str, float]
    kept: NotRequired[int]  # step whose weights a stage ends with; the row is about these


Row = Annotated[TrainRow | EvaluationRow, Field(discriminator="kind")]


def read_rows(storage: Storage) -> list[dict[str, Any]]:
    """Every row of metrics.jsonl.

    Raises:
        UserError: a line is not JSON, or not such a row.
    """
    rows: list[dict[str, Any]] = read_records(storage, METRICS, cast(Any, Row))
    return rows
