"""The main run with Ray Train: workers, strategies, accumulation and continuation change nothing but rounding."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train import ControllerError
from transformers import AutoModelForCausalLM, AutoTokenizer

from opmix_ray.config.objective import Objective
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.output.result import DomainCurves
from opmix_ray.train import loop, trainer
from opmix_ray.train.checkpoint import BestRule
from opmix_ray.train.loop import Segment
from opmix_ray.train.trainer import SegmentResult, run_segment
from tests.support import TinyRun

pytestmark = pytest.mark.usefixtures("ray_session")


Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def tiny(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tiny_data, tmp_path_factory.mktemp("segments"))


@pytest.fixture(scope="module")
def prepared(tiny: TinyRun) -> Prepared:
    return prepare(tiny.load())


@pytest.fixture(scope="module")
def whole(ray_session: None, tiny: TinyRun, prepared: Prepared) -> tuple[SegmentResult, Events]:
    """Six steps by one worker, and what it reported."""
    events: Events = []
    return run_segment(segment(tiny, prepared, "whole"), lambda *event: events.append(event)), events


def segment(tiny: TinyRun, prepared: Prepared, output: str, **changes: Any) -> Segment:
    config = tiny.load(*changes.pop("set", []))
    fields: dict[str, Any] = {
        "name": f"{output}-{changes.get('start', 0)}",
        "start": 0,
        "end": 6,
        "stage": "only",
        "stage_start": 0,
        "stage_steps": 6,
        "mixture": Mixture.uniform(prepared.domains).shares,
        "evaluate_at": (0, 6),
        "output": str(tiny.directory / output),
        "checkpoint": None,
        "seed": config.seed,
        "model": config.model,
        "train": config.train,
        "evaluation": config.evaluation,
        "sequences_searched": 4,
        "prepared": prepared,
    }
    return Segment(**(fields | changes))


def losses(result: SegmentResult) -> list[float]:
    return [row["loss"] for row in result.state.rows if row["kind"] == "train"]


def by_domain(result: SegmentResult) -> DomainCurves:
    """The segment's curves, which have to say what its rows say."""
    curves = DomainCurves.from_dict(result.state.domains["curves"])
    rows = [row for row in result.state.rows if row["kind"] == "train"]
    nats, tokens = dict.fromkeys(curves.domains, 0.0), dict.fromkeys(curves.domains, 0)
    for row in rows:
        total = [sum(column) for column in zip(*row["domains"].values(), strict=True)]
        assert row["loss"] == pytest.approx(total[0] / total[1], rel=1e-6)
        for name, (own, count) in row["domains"].items():
            nats[name] += own
            tokens[name] += count
    assert curves.nats.sum(axis=0).tolist() == list(nats.values())  # to the last bit: rounded sums are exact
    assert curves.tokens.sum(axis=0).tolist() == list(tokens.values())
    return curves


def held_out(result: SegmentResult) -> list[dict[str, float]]:
    return [row["losses"] for row in result.state.rows if row["kind"] == "evaluation"]


def test_everything_is_reported_as_it_happens(whole: tuple[SegmentResult, Events]) -> None:
    result, events = whole
    assert events[0][0] == "start"
    assert [payload for kind, payload in events if kind == "row"] == result.state.rows
    assert result.state.tokens == 6 * 4 * 32


def test_workers_and_accumulation_change_nothing_but_rounding(
    tiny: TinyRun, prepared: Prepared, whole: tuple[SegmentResult, Events]
) -> None:
    two = run_segment(
        segment(tiny, prepared, "two", set=["train.workers=2", "train.micro_batch_size=1"]), lambda *_: None
    )
    assert losses(two) == pytest.approx(losses(whole[0]), abs=1e-4)
    for a, b in zip(held_out(whole[0]), held_out(two), strict=True):
        assert b == pytest.approx(a, abs=1e-4)
    assert whole[0].state.sampler == two.state.sampler
    one, other = by_domain(whole[0]), by_domain(two)
    assert one.steps.tolist() == other.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.tokens.sum() == 6 * 4 * 31
    assert other.nats == pytest.approx(one.nats, rel=1e-5)


@pytest.mark.slow
@pytest.mark.promise
def test_train_controls_from_here_and_by_an_actor_where_an_event_loop_runs(
    tiny: TinyRun, prepared: Prepared, whole: tuple[SegmentResult, Events], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook's cells run in an event loop."""
    made: list[str] = []

    class Counted(trainer.TrainController):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            made.append(arguments["train_run_context"].run_config.name)
            super().__init__(**arguments)

    async def in_a_loop() -> SegmentResult:
        return run_segment(segment(tiny, prepared, "loop"), lambda *_: None)

    monkeypatch.setattr(trainer, "TrainController", Counted)
    looped = asyncio.run(in_a_loop())
    assert made == []
    here = run_segment(segment(tiny, prepared, "here"), lambda *_: None)
    assert made == ["here-0"]
    assert losses(here) == losses(looped) == losses(whole[0])
    with pytest.raises(RuntimeError, match="only available in an actor"):
        _ = ray.get_runtime_context().current_actor


@pytest.mark.slow
def test_fsdp2_trains_like_ddp(tiny: TinyRun, prepared: Prepared) -> None:
    both = ["train.workers=2", "train.batch_size=5"]  # one worker has a row more than the other
    ddp = run_segment(segment(tiny, prepared, "ddp", set=both), lambda *_: None)
    fsdp = run_segment(
        segment(tiny, prepared, "fsdp", set=[*both, "train.strategy=fsdp2", "train.micro_batch_size=1"]),
        lambda *_: None,
    )
    assert losses(fsdp) == pytest.approx(losses(ddp), abs=1e-4)
    assert by_domain(fsdp).tokens.tolist() == by_domain(ddp).tokens.tolist()
    assert by_domain(fsdp).nats == pytest.approx(by_domain(ddp).nats, rel=1e-4)
    weights = Path(tiny.directory / "fsdp" / fsdp.checkpoint / "model")
    other = AutoModelForCausalLM.from_pretrained(
        tiny.directory / "ddp" / ddp.checkpoint / "model"
    ).state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(weights).state_dict().items():
        assert (tensor - other[name]).abs().max() < 1e-3, name


@pytest.mark.slow
@pytest.mark.promise
def test_two_segments_are_one(tiny: TinyRun, prepared: Prepared, whole: tuple[SegmentResult, Events]) -> None:
    """Moments, schedule, random state and cursors carry over, so a decision that changes nothing changes nothing."""
    first = run_segment(segment(tiny, prepared, "parts", end=4, evaluate_at=(0,)), lambda *_: None)
    second = run_segment(
        segment(tiny, prepared, "parts", start=4, evaluate_at=(6,), checkpoint=first.checkpoint),
        lambda *_: None,
    )
    assert losses(first) + losses(second) == pytest.approx(losses(whole[0]), abs=1e-6)
    assert held_out(second)[-1] == pytest.approx(held_out(whole[0])[-1], abs=1e-6)
    assert second.state.sampler["consumed"] == whole[0].state.sampler["consumed"]
    curves = by_domain(first).then(by_domain(second))
    assert curves.to_dict() == by_domain(whole[0]).to_dict()


@pytest.mark.slow
def test_a_segment_that_is_done_is_found_again(
    tiny: TinyRun, prepared: Prepared, whole: tuple[SegmentResult, Events]
) -> None:
    """The driver may die after the last checkpoint and before it writes its own state."""
    events: Events = []
    second = run_segment(segment(tiny, prepared, "whole"), lambda *event: events.append(event))
    assert second.state.rows == whole[0].state.rows
    assert second.checkpoint == whole[0].checkpoint
    assert [kind for kind, _ in events] == ["start"]


@pytest.mark.slow
def test_a_stage_ends_with_its_best_weights_over_all_its_segments(tiny: TinyRun, prepared: Prepared) -> None:
    """Those of step 2 here, the bits of a run that was never longer; the best of one segment is known in the next."""
    never = {"evaluate_at": ()}
    two = run_segment(segment(tiny, prepared, "short", end=2, **never), lambda *_: None)
    there = run_segment(segment(tiny, prepared, "measured", end=2, evaluate_at=(2,)), lambda *_: None)
    aim = held_out(there)[0]["code"]
    near = replace(Objective.of({"code": 1.0}), own=lambda losses: abs(losses["code"] - aim))
    rule = BestRule(near, {"code": 1.0})

    first = segment(tiny, prepared, "best", end=4, evaluate_at=(0, 1, 2, 3, 4), best=rule)
    middle = run_segment(first, lambda *_: None)
    assert middle.state.best["row"]["step"] == 2
    place = {"start": 4, "evaluate_at": (5, 6), "checkpoint": middle.checkpoint}
    end = run_segment(segment(tiny, prepared, "best", best=rule, **place), lambda *_: None)
    assert end.state.step == 6
    assert [row["step"] for row in end.state.rows if row["kind"] == "evaluation"] == [5, 6, 6]
    last = end.state.rows[-1]
    assert (last["kept"], last["losses"]) == (2, middle.state.best["row"]["losses"])
    assert weights(tiny, "best", middle) != weights(tiny, "short", two), "training went on from the last ones"
    for name, mine, theirs in zip(
        FILES, weights(tiny, "best", end), weights(tiny, "short", two), strict=True
    ):
        assert mine == theirs, name


FILES = ("model/model.safetensors", "optimizer.pt")


def weights(tiny: TinyRun, output: str, result: SegmentResult) -> list[bytes]:
    return [(tiny.directory / output / result.checkpoint / name).read_bytes() for name in FILES]


def test_a_checkpoint_is_a_hugging_face_directory(tiny: TinyRun, whole: tuple[SegmentResult, Events]) -> None:
    directory = tiny.directory / "whole" / whole[0].checkpoint
    model = AutoModelForCausalLM.from_pretrained(directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny.tree["tokenizer"]["path"])
    assert model.config.vocab_size == len(tokenizer)
    assert json.loads((directory / "state.json").read_text())["step"] == 6


@pytest.mark.slow
def test_a_stage_that_begins_again_counts_its_own_steps_whatever_its_weights_had_done(
    tiny: TinyRun, prepared: Prepared, whole: tuple[SegmentResult, Events]
) -> None:
    later = {"start": 20, "end": 23, "stage_start": 20, "stage_steps": 3, "evaluate_at": (20, 23)}
    part = segment(
        tiny, prepared, "whole", checkpoint=whole[0].checkpoint, set=["train.log_every=1"], **later
    )
    found = run_segment(part, lambda *event: None).state
    trained = [row for row in found.rows if row["kind"] == "train"]
    assert found.step == 23
    assert [row["step"] for row in trained] == [21, 22, 23]
    assert found.tokens == 3 * 4 * 32
    assert all(0 <= row["learning_rate"] <= 0.003 for row in trained)


@pytest.mark.slow
def test_a_machine_that_goes_while_train_starts_workers_costs_another_beginning(
    tiny: TinyRun, prepared: Prepared, whole: tuple[SegmentResult, Events], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train calls that an error of its controller, and does not try again."""
    failures: list[Exception] = [ActorDiedError()]
    real, calls = trainer._trained, []

    def fails_at_its_end(part: Segment, on_event: trainer.OnEvent) -> SegmentResult:
        calls.append(part.name)
        result = real(part, on_event)
        if failures:
            raise ControllerError(failures.pop())
        return result

    monkeypatch.setattr(trainer, "_trained", fails_at_its_end)
    found = run_segment(segment(tiny, prepared, "again"), lambda *event: None)
    assert len(calls) == 2
    assert found.state.rows[-1]["losses"] == pytest.approx(whole[0].state.rows[-1]["losses"], abs=1e-6)
    failures.append(ValueError("ours"))
    with pytest.raises(ControllerError, match="ours"):
        run_segment(segment(tiny, prepared, "wrong"), lambda *event: None)
    assert len(calls) == 3


@pytest.mark.parametrize("ends", [None, UserError("wrong"), RuntimeError("broken")])
def test_weights_that_were_put_aside_go_with_the_worker(
    monkeypatch: pytest.MonkeyPatch, ends: Exception | None
) -> None:
    places: list[Path] = []

    class Worker:
        def __init__(self, segment: Any, reporter: Any, aside: Path) -> None:
            (aside / "best").mkdir()
            places.append(aside)

        def run(self) -> None:
            if ends is not None:
                raise ends

    monkeypatch.setattr(loop, "_Worker", Worker)
    monkeypatch.setattr(loop.ray, "get", lambda reference: reference)
    with pytest.raises(type(ends)) if ends is not None else nullcontext():
        loop.train_segment({"segment": None, "reporter": None})
    assert len(places) == 1
    assert not places[0].exists()
