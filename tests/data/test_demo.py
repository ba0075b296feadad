"""The data that ship: real, unequal, licensed, and enough to train and to judge on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from opmix_ray.config import RunConfig, SourceConfig
from opmix_ray.data.prepare import prepare
from opmix_ray.data.tokenizer import tokenizer_fingerprint, train_bpe
from opmix_ray.sources.source import iter_documents, validate_sources

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"
NAMES = ["code", "german", "glossary", "mathematics", "novel", "speeches"]


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {
        name: [str(d.text) for d in iter_documents(SourceConfig(path=str(DATA / f"{name}.jsonl.gz")), name)]
        for name in NAMES
    }


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_demo_data", ROOT / "tools" / "build_demo_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_six_domains_of_unequal_size_in_less_than_four_megabytes(texts: dict[str, list[str]]) -> None:
    assert sorted(path.name.split(".")[0] for path in DATA.glob("*.jsonl.gz")) == sorted(
        [*NAMES, "addresses"]
    )
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 4_000_000
    sizes = sorted(sum(map(len, documents)) for documents in texts.values())
    assert sizes[0] > 400_000
    assert sizes[-1] > 5 * sizes[0]


def test_no_document_comes_twice(texts: dict[str, list[str]]) -> None:
    everything = [text for documents in texts.values() for text in documents]
    assert len(set(everything)) == len(everything)


def test_every_domain_has_its_licence(builder: ModuleType) -> None:
    licences = (DATA / "LICENSES.md").read_text(encoding="utf-8")
    assert sorted(domain.name for domain in builder.DOMAINS) == NAMES
    for domain in [*builder.DOMAINS, *builder.TARGETS]:
        part = licences.split(f"## {domain.name}.jsonl.gz")[1].split("\n## ")[0]
        package = domain.package
        for said in (package.name, package.version, package.sha256, package.licence, package.copyright):
            assert said in part
        if domain.notice:
            assert (DATA / "licenses" / f"{domain.name}.txt").stat().st_size > 1000


@pytest.mark.seconds
def test_the_tokenizer_is_the_one_that_the_domains_give(
    texts: dict[str, list[str]], builder: ModuleType
) -> None:
    ordered = {domain.name: texts[domain.name] for domain in builder.DOMAINS}
    trained = train_bpe(builder.equal_parts(ordered), builder.VOCAB_SIZE)
    shipped = AutoTokenizer.from_pretrained(DATA / "tokenizer")
    assert tokenizer_fingerprint(trained) == tokenizer_fingerprint(shipped)


@pytest.mark.seconds
def test_every_domain_can_be_trained_and_judged_on(make_config: Callable[..., RunConfig]) -> None:
    domains = {name: {"path": str(DATA / f"{name}.jsonl.gz")} for name in NAMES}
    tokenizer = {"path": str(DATA / "tokenizer")}
    config = make_config(tokenizer=tokenizer, seq_len=256, eval_fraction=0.05, **domains)
    assert validate_sources(config) == []
    prepared = prepare(config)
    for domain in prepared.domains.values():
        assert domain.eval_sequences >= 32
        assert domain.train_sequences >= 800
        assert 2 < (domain.bytes_per_token or 0) < 4.5
