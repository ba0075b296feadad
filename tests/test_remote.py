"""Object stores: a server that checks signatures, and what is said when it does not let us in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from opmix_ray.errors import UserError
from opmix_ray.remote import refuse_credentials, without_credentials
from opmix_ray.runner.validate import check_uris
from opmix_ray.sources.listing import expand
from opmix_ray.storage import Storage, seal
from opmix_ray.train.checkpoint import NOTES, recover
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.object_store import ObjectStore, object_store
from tests.support import TinyRun


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, with its keys in this process's environment."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.mark.seconds
def test_files_are_written_listed_appended_to_and_removed(store: ObjectStore) -> None:
    storage = Storage(store.uri("files"))
    assert (storage.names(), storage.exists(), storage.lines("log")) == ([], False, [])
    storage.write_json("a/b.json", {"x": 1})
    storage.append("log", "one\n")
    Storage(store.uri("files")).append("log", "two\nthr")
    assert storage.read_json("a/b.json") == {"x": 1}
    assert storage.lines("log") == ["one", "two"]
    assert storage.names() == ["a", "log"]
    assert storage.names(recursive=True) == ["a", "a/b.json", "log"]
    assert storage.child("a").exists("b.json")
    storage.delete("a")
    storage.delete("log")
    assert not storage.exists("a/b.json")
    assert not storage.exists("log")
    assert storage.path("") == storage.uri


@pytest.mark.seconds
def test_a_directory_is_sent_with_its_mark_last_and_fetched_for_a_while(
    store: ObjectStore, tmp_path: Path
) -> None:
    for name in ("done.json", "a.bin", "z.bin", "sub/x.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    storage = Storage(store.uri("directories"))
    storage.upload(tmp_path, "probe", last="done.json")
    system, root = storage.filesystem
    times = {name: system.get_file_info(f"{root}/probe/{name}").mtime for name in ("done.json", "z.bin")}
    assert times["done.json"] >= times["z.bin"]
    with storage.local("probe") as directory:
        names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
        assert names == ["a.bin", "done.json", "sub/x.bin", "z.bin"]
        assert (directory / "sub/x.bin").read_text() == "sub/x.bin"
    assert not directory.exists()


@pytest.mark.seconds
def test_an_object_is_not_there_before_it_is_whole(store: ObjectStore) -> None:
    """Twelve megabytes go up in parts; whoever looks meanwhile sees the old object or none."""
    storage = Storage(store.uri("parts"))
    system, root = storage.filesystem
    stream = system.open_output_stream(f"{root}/large")
    stream.write(b"x" * (12 << 20))
    assert not storage.exists("large")
    stream.close()
    assert len(storage.read_bytes("large")) == 12 << 20


@pytest.mark.seconds
def test_checkpoints_that_were_never_finished_are_removed(store: ObjectStore, tmp_path: Path) -> None:
    storage = Storage(store.uri("segments"))
    (tmp_path / "state.json").write_text("{}")
    seal(tmp_path)
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3"):
        storage.upload(tmp_path, f"train/00/{name}")
    storage.write_json(f"train/00/{NOTES}", {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2"}]})
    assert recover(storage, "train/00") is None
    assert storage.names("train/00") == ["checkpoint_2", NOTES]
    assert storage.exists("train/00/checkpoint_2/state.json")
    assert recover(storage, "train/never") is None


WRONG = {
    "another secret": {"AWS_SECRET_ACCESS_KEY": "hush-hush"},
    "a key that nobody has": {"AWS_ACCESS_KEY_ID": "AKIANOBODY"},
    "a session that is not known": {"AWS_SESSION_TOKEN": "gone", "AWS_ACCESS_KEY_ID": "ASIAGONE"},
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.seconds
def test_wrong_keys_are_one_line_that_does_not_show_them(
    opmix: Opmix, store: ObjectStore, tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    for name, value in WRONG[case].items():
        monkeypatch.setenv(name, value)
    lines = [
        opmix("status", store.uri("run")).only_error(),
        opmix("run", tiny.write(), "--output", store.uri("run")).only_error(),
        opmix(
            "validate", tiny.write(), "--set", f"data.domains.code.path={store.uri('in/*.jsonl')}"
        ).only_error(),
    ]
    for line in lines:
        assert "check the permissions, and that the credentials are right" in line, line
        assert not any(os.environ[name] in line for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"))
        assert "Request ID" not in line


@pytest.mark.seconds
def test_a_bucket_that_is_not_there(opmix: Opmix, store: ObjectStore, tiny: TinyRun) -> None:
    line = opmix("run", tiny.write(), "--output", store.uri("run", bucket="nowhere")).only_error()
    assert line.endswith("check the bucket's name")
    for path in ("in/*.jsonl", "in.jsonl", "in"):
        with pytest.raises(
            UserError, match=r"data.domains.code.path = s3://nowhere/in.*; check the bucket's name$"
        ):
            expand(store.uri(path, bucket="nowhere"), key="data.domains.code.path")
    with pytest.raises(UserError, match=r"no file matches"):
        expand(store.uri("in/*.jsonl"), key="data.domains.code.path")


SECRETS = [
    ("s3://AKIAX:hush@bucket/run?region=x", "s3://***@bucket/run?region=x"),
    ("s3://AKIAX:hu/sh+@bucket/run", "s3://***@bucket/run"),
    ("s3://bucket/run?region=x&secret_key=hush", "s3://bucket/run?region=x&secret_key=***"),
    (
        "abfs://container@account/run?client_secret=hush&a=b",
        "abfs://container@account/run?client_secret=***&a=b",
    ),
]


@pytest.mark.parametrize(("uri", "shown"), SECRETS)
@pytest.mark.seconds
def test_credentials_in_a_uri_are_refused_and_not_shown(
    opmix: Opmix, tiny: TinyRun, uri: str, shown: str
) -> None:
    assert without_credentials(uri) == shown
    for option in ("output", "data.cache", "data.domains.code.path"):
        ended = opmix("validate", tiny.write(), "--set", f"{option}={uri}")
        assert shown in ended.only_error()
        assert "hush" not in ended.out + ended.err
        assert "hu/sh" not in ended.out + ended.err
    assert "hush" not in opmix("status", uri).only_error()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/k?scheme=http&endpoint_override=127.0.0.1:5",
        "gs://anonymous@b/x",
        "hdfs://h:9000/a@b",
        "/a:b@c",
    ],
)
def test_uris_without_credentials_are_left_alone(uri: str, tiny: TinyRun) -> None:
    refuse_credentials(uri)
    assert without_credentials(uri) == uri
    assert check_uris(tiny.load().but(output=uri)) == []
