"""opmix doctor says what is there, and calls wrong what is wrong."""

from __future__ import annotations

import json

import pytest

from opmix_ray.cluster import doctor
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix


def test_it_ends_well_and_names_what_matters(opmix: Opmix) -> None:
    ended = opmix("doctor", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    what = {finding["what"] for finding in found["findings"]}
    assert what >= {
        "opmix_ray",
        "python",
        "torch",
        "ray",
        "ray address",
        "cpus",
        "memory",
        "shared memory",
        "data cache",
    }
    assert found["slow"] == sum(finding["state"] == "slow" for finding in found["findings"])
    assert all(finding["advice"] for finding in found["findings"] if finding["state"] in ("slow", "wrong"))


def test_an_address_that_does_not_answer_is_wrong_but_no_error(opmix: Opmix) -> None:
    ended = opmix("doctor", "--json", "--address", "127.0.0.1:1")
    assert ended.code == 0
    (line,) = [each for each in json.loads(ended.out)["findings"] if each["what"] == "ray address"]
    assert line["state"] == "wrong"
    assert "ray start --head" in line["advice"]


def test_what_is_no_address_is_wrong_input(opmix: Opmix) -> None:
    assert "is not an address" in opmix("doctor", "--address", "nowhere at all").only_error()


def test_an_old_package_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["numpy>=99", "nothing-of-this-name>=1", "ruff>=0; extra == 'dev'"]
    )
    found = {finding.what: finding for finding in doctor._versions()}
    assert found["numpy"].state == "wrong"
    assert found["numpy"].advice == "pip install 'numpy>=99'"
    assert found["nothing-of-this-name"].found == "not installed"
    assert "ruff" not in found


def test_small_shared_memory_is_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(doctor, "SHARED", 1e6)
    (line,) = [finding for finding in doctor._memory() if finding.what == "shared memory"]
    assert line.state == "slow"
    assert "--shm-size" in line.advice
