"""What is prepared is found again, whole or not at all, by however many processes."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from opmix_ray.config import RunConfig
from opmix_ray.data import encode
from opmix_ray.data import prepare as preparing
from opmix_ray.data.prepare import prepare
from opmix_ray.data.store import TokenStore
from opmix_ray.errors import UserError
from tests.data.conftest import same, sentences

Make = Callable[..., RunConfig]
Write = Callable[..., str]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that were really read."""
    seen: list[str] = []

    def counting(recipe: Any, on_progress: Any) -> Any:
        seen.append(recipe.source.key)
        return encode.read_blocks(recipe, on_progress)

    monkeypatch.setattr(preparing, "read_blocks", counting)
    return seen


def test_what_is_prepared_is_found_by_content(make_config: Make, write_rows: Write, reads: list[str]) -> None:
    a, b = write_rows("a.jsonl", sentences(40)), write_rows("b.jsonl", sentences(40, 100))
    first = prepare(make_config(a={"path": a}, b={"path": b}))
    assert reads == ["data.domains.a", "data.domains.b"]
    assert prepare(make_config(a={"path": a}, b={"path": b})) == first
    moved = str(Path(a).rename(Path(a).with_name("moved.jsonl")))
    assert prepare(make_config(a={"path": moved}, b={"path": b})) == first
    assert len(reads) == 2
    write_rows("b.jsonl", sentences(40, 101))
    changed = prepare(make_config(a={"path": moved}, b={"path": b}))
    assert reads[2:] == ["data.domains.b"]
    assert changed.domains["b"].path != first.domains["b"].path


@pytest.mark.parametrize("change", ["seq_len", "eval_fraction", "column", "sets", "tokenizer"])
def test_whatever_changes_the_sequences_prepares_again(
    change: str, make_config: Make, write_rows: Write, reads: list[str], chat_tokenizer_dir: str
) -> None:
    path = write_rows("a.jsonl", [{**row, "other": row["text"][::-1]} for row in sentences(60)])
    prepare(make_config(d={"path": path}))
    options: dict[str, Any] = {
        "seq_len": {"seq_len": 9},
        "eval_fraction": {"eval_fraction": 0.31},
        "sets": {"sets": {"t": {"path": write_rows("t.jsonl", sentences(5))}}},
        "tokenizer": {"tokenizer": {"path": chat_tokenizer_dir}},
    }.get(change, {})
    prepare(
        make_config(d={"path": path} | ({"text_column": "other"} if change == "column" else {}), **options)
    )
    assert reads.count("data.domains.d") == 2


@pytest.mark.seconds
def test_the_same_bytes_under_a_name_of_another_format_are_prepared_again(
    make_config: Make, tmp_path: Path, reads: list[str]
) -> None:
    digests = []
    for name in ("d.csv", "d.txt", "other.csv"):
        (tmp_path / name).write_text("n,text\n" + "".join(f"{n},{f'row {n} ' * 300}\n\n" for n in range(80)))
        digests.append(prepare(make_config(d={"path": str(tmp_path / name)})).domains["d"].digest)
    assert digests[0] == digests[2] != digests[1]
    assert len(reads) == 2


@pytest.mark.seconds
def test_a_format_that_is_set_is_part_of_what_is_found(make_config: Make, write_rows: Write) -> None:
    path = write_rows("d.txt", sentences(60))
    Path(path).write_text(Path(path).read_text().replace("\n", "\n" + "\n" * 5000))
    digests = {
        prepare(make_config(d={"path": path, "format": kind})).domains["d"].digest
        for kind in ("text", "jsonl")
    }
    assert len(digests) == 2


@pytest.mark.parametrize("damage", ["bit", "gone", "short"])
def test_a_shard_that_is_not_what_was_written_is_named(
    damage: str, make_config: Make, write_rows: Write
) -> None:
    config = make_config(d={"path": write_rows("d.jsonl", sentences(60))})
    directory = Path(prepare(config).domains["d"].path)
    file = directory / "train-00000.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "bit" else content[:-9])
    what = "is gone" if damage == "gone" else "is damaged"
    with pytest.raises(
        UserError, match=rf"train-00000.arrow: {what}; delete its directory to prepare it again"
    ):
        prepare(config)
    shutil.rmtree(directory)
    assert prepare(config).domains["d"].train_tokens > 0


def test_progress_ends_at_all_bytes(make_config: Make, write_rows: Write) -> None:
    paths = [write_rows(f"{n}.jsonl", sentences(40, 40 * n)) for n in range(3)]
    total = sum(os.path.getsize(path) for path in paths)
    calls: list[tuple[str, int, int]] = []
    prepare(make_config(d={"path": paths}), on_progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert calls[-1] == ("d", total, total)
    assert len(calls) == 4


def run_apart(config: RunConfig, kill: bool, most_bytes: float = math.inf) -> None:
    """Prepare in another process; it kills itself half-way where asked, and fails where it takes more memory."""

    def stop(name: str, done: int, total: int) -> None:
        if kill and done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    prepare(config, on_progress=stop)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < most_bytes


def start(config: RunConfig, kill: bool, most_bytes: float = math.inf) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=run_apart, args=(config, kill, most_bytes))
    process.start()
    return process


@pytest.mark.seconds
def test_a_killed_preparation_leaves_nothing_that_counts_and_two_at_once_agree(
    make_config: Make, write_rows: Write, tmp_path: Path
) -> None:
    paths = [write_rows(f"{n}.jsonl", sentences(40, 40 * n)) for n in range(4)]
    config = make_config(d={"path": paths})
    killed = start(config, kill=True)
    killed.join(timeout=120)
    assert killed.exitcode == -signal.SIGKILL
    domains = tmp_path / "cache" / "domains"
    left = [path.name for path in domains.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".tmp-")
    both = [start(config, kill=False) for _ in range(2)]
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    finished = [path for path in domains.iterdir() if not path.name.startswith(".tmp-")]
    assert len(finished) == 1
    elsewhere = prepare(make_config(d={"path": paths}, cache=str(tmp_path / "other")))
    assert same(TokenStore.open(str(finished[0]), "train"), elsewhere.domains["d"].train())
    assert [p for p in domains.iterdir() if p.name.startswith(".tmp-")] == [domains / left[0]]


def test_what_was_left_long_ago_is_removed(make_config: Make, write_rows: Write, tmp_path: Path) -> None:
    left = tmp_path / "cache" / "domains" / ".tmp-left"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    prepare(make_config(d={"path": write_rows("a.jsonl", sentences(40))}))
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_named(
    make_config: Make, write_rows: Write, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    config = make_config(d={"path": write_rows("a.jsonl", sentences(40))}, cache=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"data\.cache"):
        prepare(config)


def test_the_manifest_says_what_was_done(make_config: Make, write_rows: Write) -> None:
    path = write_rows("a.jsonl", [*sentences(40), {"text": ""}, {"text": None}])
    domain = prepare(make_config(d={"path": path})).domains["d"]
    manifest = json.loads((Path(domain.path) / "manifest.json").read_text())
    assert manifest == domain.manifest
    assert (manifest["kind"], manifest["empty"], manifest["eval_fraction"]) == ("text", 2, 0.3)
    assert manifest["files"] == [{"path": path, "size": os.path.getsize(path)}]


@pytest.mark.slow
def test_a_line_of_fifty_megabytes_takes_little_memory(make_config: Make, write_rows: Write) -> None:
    path = write_rows("a.jsonl", [{"text": "word and " * 5_600_000}, *sentences(100)])
    process = start(make_config(d={"path": path}), kill=False, most_bytes=2e9)
    process.join(timeout=300)
    assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_ray_data_gives_the_same_sequences(make_config: Make, write_rows: Write, tmp_path: Path) -> None:
    paths = [write_rows(f"{n:02}.jsonl", sentences(10 + n, 100 * n)) for n in range(9)]
    alone = make_config(d={"path": paths})
    process = start(alone, kill=False)  # where Ray is not connected
    process.join(timeout=300)
    assert process.exitcode == 0
    here = prepare(alone)
    calls: list[tuple[str, int, int]] = []
    config = make_config(d={"path": paths}, cache=str(tmp_path / "other"))
    there = prepare(config, on_progress=lambda *call: calls.append(call))
    assert len(calls) == 10
    assert same(here.domains["d"].train(), there.domains["d"].train())
    assert same(here.domains["d"].evaluation(), there.domains["d"].evaluation())
    assert here.domains["d"].manifest == there.domains["d"].manifest


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_of_ray_data_end_by_themselves(
    make_config: Make, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray can end the driver where a task is cancelled while it completes."""
    cancelled = []
    monkeypatch.setattr(ray, "cancel", lambda *given, **_: cancelled.append(given))
    paths = [write_rows(f"{n:02}.jsonl", sentences(300, 100 * n)) for n in range(24)]
    config = make_config(d={"path": paths})
    with pytest.raises(ZeroDivisionError):
        prepare(config, on_progress=lambda name, done, total: 1 / 0)  # type: ignore[arg-type, return-value]
    Path(paths[5]).write_text('{"text": 5}\n')
    with pytest.raises(UserError, match=r"05\.jsonl: data\.domains\.d\.text_column: line 1 holds int"):
        prepare(config)
    assert cancelled == []
