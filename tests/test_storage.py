"""Files that are whole or not there, on this machine and elsewhere."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from opmix_ray.errors import UserError, UserErrors, disk_full, user_errors, write_to
from opmix_ray.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def test_what_is_written_is_read_back(storage: Storage) -> None:
    storage.write_json("a/b.json", {"ü": [1, 2.5, None]})
    storage.write_bytes("raw", b"\x00\xff")
    assert storage.read_json("a/b.json") == {"ü": [1, 2.5, None]}
    assert storage.read_bytes("raw") == b"\x00\xff"
    assert storage.names() == ["a", "raw"]
    assert storage.names("a") == ["b.json"]
    assert storage.child("a").exists("b.json")
    assert Path(storage.path("raw")).is_absolute()


def test_json_holds_null_for_what_is_no_number(storage: Storage) -> None:
    storage.write_json("x.json", {"a": [math.nan, 1.0, (math.inf, np.float64("-inf"))], "b": {1: None}})
    assert json.loads(storage.read_text("x.json"), parse_constant=pytest.fail) == {
        "a": [None, 1.0, [None, None]],
        "b": {"1": None},
    }


def test_a_file_uri_is_a_local_directory(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/x")
    storage.write_text("t", "one")
    assert storage.is_local
    assert (tmp_path / "x" / "t").read_text() == "one"


@pytest.mark.seconds
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(storage: Storage) -> None:
    """With a limit on the size of files, which the kernel keeps as it keeps that of a disk."""
    storage.write_text("state.json", "old")
    code = (
        "import resource, signal, sys; from opmix_ray.storage import Storage; from opmix_ray.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: Storage(sys.argv[1]).write_text('state.json', 'x' * 5000)\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, storage.uri], capture_output=True, text=True, check=True
    )
    assert "state.json: cannot be written: File too large" in done.stdout
    assert storage.read_text("state.json") == "old"
    assert storage.names() == ["state.json"]


def test_lines_leave_out_one_that_was_cut_off(storage: Storage) -> None:
    assert storage.lines("log") == []
    storage.append("log", "one\n")
    storage.append("log", "two\nthr")
    assert storage.lines("log") == ["one", "two"]


def test_an_upload_replaces_a_directory_as_a_whole(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "new").write_text("1")
    storage.write_text("model/old", "0")
    storage.upload(source, "model")
    assert storage.names("model") == ["new"]
    assert storage.names() == ["model"]
    with storage.local("model") as directory:
        assert directory == Path(storage.path("model"))


def test_deleting_what_is_not_there_is_no_error(storage: Storage) -> None:
    storage.delete("nothing")
    storage.write_text("d/f", "")
    storage.delete("d")
    assert not storage.exists("d")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "is not valid JSON"), (b"", "is not valid JSON"), (b"\xff\xfe\xff", "is not")],
)
def test_files_that_are_spoilt_are_named(storage: Storage, content: bytes, words: str) -> None:
    storage.write_bytes("state.json", content)
    with pytest.raises(UserError, match=words) as found:
        storage.read_json("state.json")
    assert found.value.file == storage.path("state.json")
    assert found.value.remedy


def test_places_that_cannot_be_written(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for action in (
        lambda: Storage(str(tmp_path / "file")).write_text("x", ""),
        lambda: Storage(str(tmp_path / "file")).append("x", ""),
        lambda: storage.read_text("missing"),
        lambda: storage.upload(tmp_path / "nowhere", "x"),
    ):
        with pytest.raises(UserError) as found:
            action()
        assert found.value.file
        assert found.value.remedy
        assert "\n" not in str(found.value)


def test_an_unknown_file_system_is_named() -> None:
    with pytest.raises(UserError, match=r"output = gopher://x: cannot open this file system"):
        Storage("gopher://x")


def test_an_error_is_one_line_with_place_value_and_remedy() -> None:
    error = UserError("is\nwrong", file="a.yaml", key="b.c", value="x" * 200, remedy="mend it")
    assert str(error) == f"a.yaml: b.c = {'x' * 77}...: is wrong; mend it"
    long = "/data/" + "x" * 200 + "/train.jsonl"
    assert str(UserError("is wrong", key="b.c", value=long)) == f"b.c = {long}: is wrong"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.key, copy.remedy) == (str(error), "b.c", "mend it")
    both = pickle.loads(pickle.dumps(UserErrors([error, UserError("two")])))
    assert str(both) == f"{error}\ntwo"


def test_an_error_takes_a_file_only_where_it_has_a_key_and_no_file() -> None:
    assert str(UserError("p", key="k").within("f")) == "f: k: p"
    assert str(UserError("p", key="k", file="g").within("f")) == "g: k: p"
    assert str(UserError("p", key="--set").within("f")) == "--set: p"
    assert str(UserError("p").within("f")) == "p"
    assert str(UserErrors([UserError("p", key="k")]).within("f")) == "f: k: p"


def test_the_users_error_is_found_inside_others() -> None:
    inner = UserError("inner")

    def wrapped(how: str) -> BaseException:
        try:
            try:
                raise inner
            except UserError as error:
                if how == "cause":
                    raise RuntimeError("outer") from error
                raise KeyError("outer")  # noqa: B904
        except Exception as error:
            return error

    assert user_errors(wrapped("cause")) == [inner]
    assert user_errors(wrapped("context")) == [inner]
    assert user_errors(UserErrors([inner, inner])) == [inner, inner]
    assert user_errors(RuntimeError("a bug")) == []


def test_a_full_disk_is_the_users_error_wherever_it_shows() -> None:
    import errno

    (found,) = user_errors(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"))
    assert str(found).startswith("/data/x: cannot be written: no space left on the disk; free some space")
    assert "no space left" in str(user_errors(RuntimeError("task: [Errno 28] No space left on device"))[0])
    assert user_errors(OSError(errno.EIO, "broken")) == []
    assert disk_full().remedy
    told = "Traceback\nOSError: [Errno 28] No space left on device: '/scratch/ray/spill/7'\nsee \"/tmp/log\""
    assert str(user_errors(RuntimeError(told))[0]).startswith("/scratch/ray/spill/7: cannot be written")


def test_an_output_that_becomes_read_only_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    monkeypatch.setattr("opmix_ray.errors._places", [])
    output = tmp_path / "out"
    write_to(output)
    for code, why in ((errno.EROFS, "the file system is read-only"), (errno.EACCES, "permission denied")):
        (found,) = user_errors(OSError(code, os.strerror(code), str(output / "state.json")))
        assert str(found).startswith(f"{output}/state.json: cannot be written: {why}; make it writable")
        assert "--resume" in str(found)
    assert user_errors(PermissionError(errno.EACCES, "Permission denied", "/etc/shadow")) == [], "not ours"
    told = "task failed: [Errno 30] Read-only file system: '/mnt/x/metrics.jsonl'"
    assert str(user_errors(RuntimeError(told))[0]).startswith("/mnt/x/metrics.jsonl: cannot be written")


def test_an_error_out_of_a_ray_task_is_one_line(ray_session: None) -> None:
    import ray

    @ray.remote
    def fail(several: bool) -> None:
        error = UserError("is wrong", key="k", remedy="mend it")
        raise UserErrors([error, error]) if several else error

    for several in (False, True):
        with pytest.raises(Exception, match="wrong") as found:
            ray.get(fail.remote(several))
        assert [str(error) for error in user_errors(found.value)] == ["k: is wrong; mend it"] * (1 + several)
