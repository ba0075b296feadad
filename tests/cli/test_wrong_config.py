"""Configurations that are wrong: one line for each thing, with file, key, value and remedy; nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from opmix_ray.cluster import connect
from tests.cli.conftest import Opmix
from tests.support import TinyRun

Tree = dict[str, Any]


def _set(*path: Any, value: Any) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        node: Any = tree
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        node[path[-1]] = value

    return change


def _shares(**shares: Any) -> Callable[[Tree], None]:
    return _set("stages", 0, "start", value=shares)


def _all_domains(key: str, value: float) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        for source in tree["data"]["domains"].values():
            source[key] = value

    return change


# what is changed; key and value named; words of the problem or remedy
CASES: dict[str, tuple[Callable[[Tree], None], str, str]] = {
    "negative weight": (_shares(code=-1, german=1), "stages.0.start.code = -1", "at least 0"),
    "NaN weight": (_shares(code=float("nan")), "stages.0.start.code = nan", "finite"),
    "infinite weight": (_shares(code=float("inf")), "stages.0.start.code = inf", "finite"),
    "weight in words": (_shares(code="much"), "stages.0.start.code = much", "number"),
    "weights sum to 0": (_shares(code=0, german=0), "stages.0.start = {'code': 0", "sum to 0; give one of them"),
    "weight of no domain": (_shares(cod=1), "stages.0.start.cod = 1", "did you mean `code`?"),
    "start of no known kind": (_set("stages", 0, "start", value="even"), "stages.0.start = even", "'uniform'"),
    "evaluation weights sum to 0": (
        _set("evaluation", "weights", value={"code": 0}), "evaluation.weights = {'code': 0", "sum to 0",
    ),
    "negative evaluation weight": (
        _set("evaluation", "weights", value={"code": -2}), "evaluation.weights.code = -2", "at least 0",
    ),
    "prior of no domain": (_set("proposal", "prior", value={"x": 1}), "proposal.prior.x = 1", "known: code"),
    "stage of no domain": (_set("stages", 0, "domains", value=["cod"]), "stages.0.domains = cod", "`code`"),
    "stage without domains": (_set("stages", 0, "domains", value=[]), "stages.0.domains = []", "has no domain"),
    "decision about one domain": (
        _set("stages", 0, "domains", value=["code"]), "stages.0.decide_at = [0.5]", "at least two domains; add",
    ),
    "decision after the end": (_set("stages", 0, "decide_at", value=[1.0]), "stages.0.decide_at = 1.0", "[0, 1)"),
    "decision beside training that ends after the stage": (
        lambda tree: tree["stages"][0].update(overlap=6), "stages.0.overlap = 6",
        "set it below 6",
    ),
    "search spaces for other decisions": (
        _set("stages", 0, "search_space", value=["simplex", "old_new"]), "stages.0.search_space",
        "2 search spaces for 1 decisions",
    ),
    "renamed from a domain that is there": (
        _set("data", "domains", "code", "renamed_from", value="german"), "data.domains.code.renamed_from = german",
        "use split_from",
    ),
    "old mixture of unknown domains": (
        _set("base", value={"mixture": {"cod": 1}}), "base.mixture.cod = 1", "code",
    ),
    "base that is no run": (_set("base", value={"run": "/nowhere"}), "base.run = /nowhere", "name a run's output"),
    "questions without answers": (
        lambda tree: tree["evaluation"].update(
            sets={"quiz": tree["data"]["domains"]["code"] | {"metric": "exact_match", "prompt_column": "text"}}
        ),
        "evaluation.sets.quiz.answer_column", "name the column",
    ),
    "no domain": (_set("data", "domains", value={}), "data.domains = {}", "is empty"),
    "no stage": (_set("stages", value=[]), "stages = []", "is empty"),
    "name that is no file name": (
        lambda tree: tree["data"]["domains"].update({"a/b": tree["data"]["domains"]["code"]}),
        "data.domains.a/b", "letters, digits",
    ),
    "domain called old": (
        lambda tree: tree["data"]["domains"].update(old=tree["data"]["domains"]["code"]),
        "data.domains.old", "rename the domain",
    ),
    "evaluation set named like a domain": (
        lambda tree: tree["evaluation"].update(sets={"code": tree["data"]["domains"]["code"]}),
        "evaluation.sets.code", "give it another name",
    ),
    "least shares above 1": (
        _all_domains("min_share", 0.5), "stages.0.domains",
        "sum to 1.5, 0.5 more than 1 (code 0.5, german 0.5, mathematics 0.5); lower data.domains.code.min_share",
    ),
    "greatest shares below 1": (
        _all_domains("max_share", 0.2), "stages.0.domains",
        "sum to 0.6, 0.4 less than 1 (code 0.2, german 0.2, mathematics 0.2); raise data.domains.code.max_share",
    ),
    "least above greatest": (
        lambda tree: tree["data"]["domains"]["code"].update(min_share=0.5, max_share=0.4),
        "data.domains.code.min_share = 0.5", "above its max_share, 0.4",
    ),
    "share in per cent": (
        _set("data", "domains", "code", "min_share", value=20), "data.domains.code.min_share = 20", "less than",
    ),
    "more workers than sequences": (  # as many as there are CPUs in a Ray of another test
        lambda tree: tree["train"].update(workers=2, batch_size=1), "train.workers = 2", "train.batch_size, 1;",
    ),
    "no steps": (_set("stages", 0, "steps", value=0), "stages.0.steps = 0", "greater than or equal to 1"),
    "learning rate of 0": (
        _set("train", "optimizer", "learning_rate", value=0), "train.optimizer.learning_rate = 0", "default is 0.0003",
    ),
    "schedule that does not fit": (
        _set("train", "schedule", value={"warmup_fraction": 0.9, "decay_fraction": 0.3}),
        "train.schedule.warmup_fraction = 0.9", "take 1.2 of the stage",
    ),
    "unknown search space": (_set("search", "space", value="simplx"), "search.space = simplx", "known: bounded"),
    "unknown search space of a stage": (
        _set("stages", 0, "search_space", value="x"), "stages.0.search_space = x", "known: bounded",
    ),
    "search space file that is not there": (
        _set("search", "space", value="my.yaml"), "search.space = ", "no such search space",
    ),
    "nothing new to search": (_set("search", "space", value="old_new"), "search.space = old_new", "use `simplex`"),
    "unknown law": (_set("proposal", "law", value="log-lin"), "proposal.law = log-lin", "did you mean `log-linear`?"),
    "unknown sampler": (_set("search", "sampler", value="best"), "search.sampler = best", "'gp', 'tpe'"),
    "model and configuration": (_set("model", "path", value="/a/b"), "model = /a/b", "both `path` and `config`"),
    "neither": (_set("model", value={}), "model: ", "either `path` or `config`"),
    "unknown model type": (
        _set("model", "config", "model_type", value="lama"), "model.config.model_type = lama", "did you mean `llama`?",
    ),
    "unknown model key": (
        _set("model", "config", "hidden_sise", value=3), "model.config.hidden_sise", "did you mean `hidden_size`?",
    ),
    "layers that the model lacks": (
        _set("probe", "target_modules", value=["qproj"]), "probe.target_modules = qproj", "q_proj",
    ),
    "no model": (lambda tree: tree.pop("model"), "model: needs either `path` or `config`", "give model.path"),
    "no tokenizer": (lambda tree: tree.pop("tokenizer"), "tokenizer.path", "set tokenizer.train_vocab_size"),
    "tokenizer that is not there": (
        _set("tokenizer", "path", value="/nowhere/t.json"), "tokenizer.path = /nowhere/t.json", "no such file",
    ),
    "more CPUs than there are": (
        lambda tree: tree.update(cluster={"num_cpus": 2}) or tree["probe"].update(cpus=1000),  # type: ignore[func-returns-value]
        "probe.cpus = 1000", "1000 CPUs, the cluster has 2",
    ),
    "more CPUs than this machine has": (
        _set("train", "cpus_per_worker", value=4096), "train.cpus_per_worker = 4096", "4096 CPUs, this machine has",
    ),
    "many workers that are too much together": (
        lambda tree: tree["train"].update(batch_size=4096, workers=4096), "train.cpus_per_worker = 1", "train.workers",
    ),
    "a cache below a file": (
        _set("data", "cache", value="/etc/passwd/cache"), "data.cache = /etc", "cannot be written",
    ),
    "sequences above the context": (
        _set("data", "seq_len", value=65), "data.seq_len = 65", "above the model's context, 64 tokens",
    ),
    "one file in two domains": (
        lambda tree: tree["data"]["domains"].update(again={"path": [tree["data"]["domains"]["code"]["path"]]}),
        "data.domains.again.path", "is read by the domain code too",
    ),
    "shares in percent": (
        lambda tree: tree["stages"][0].update(start={"code": 50, "german": 30, "mathematics": 20}),
        "stages.0.start = code 50", "write {code: 0.5, german: 0.3, mathematics: 0.2}",
    ),
    "a domain without a first share": (
        lambda tree: tree["stages"][0].update(start={"code": 0.5, "german": 0.5}), "stages.0.start",
        "leaves out mathematics",
    ),
    "fewer trials than a law has unknowns": (
        lambda tree: tree.update(search={"trials": 3}, proposal={"law": "log-linear"}),
        "search.trials = 3", "`log-linear` needs for 3 components, 4",
    ),
    "hardly a trial": (_set("search", "trials", value=2), "search.trials = 2", "set at least 3"),
    "truth for a number": (_set("train", "batch_size", value=True), "train.batch_size = True", "must be a number"),
    "a timestamp as seed": (_set("seed", value=20240726123456), "seed = 20240726123456", "less than 4294967296"),
    "a beta of one": (
        _set("train", "optimizer", value={"betas": [1.0, 0.95]}), "train.optimizer.betas.0 = 1.0", "less than 1",
    ),
    "one beta": (_set("train", "optimizer", value={"betas": [0.9]}), "betas = [0.9]", "has too few values"),
    "nobody's home": (
        _set("data", "domains", "code", "path", value="~nobody-here/x"), "data.domains.code.path", "no file matches",
    ),
    "a name that is too long": (_set("data", "cache", value="a" * 300), "data.cache", "File name too long"),
    "endless training": (_set("stages", 0, "steps", value=10**12), "stages.0.steps = 1000000000000", "less than or"),
    "a model that sees what it is to predict": (
        _set("model", "config", value={
            "model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
            "intermediate_size": 32,
        }), "model = bert", "sees the tokens that it is to predict",
    ),
    "more GPUs than there are": (
        _set("train", "gpus_per_worker", value=640), "train.gpus_per_worker = 640", "640 GPUs, the cluster has",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_is_refused_with_file_key_value_and_remedy(
    opmix: Opmix, tiny: TinyRun, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # other tests may have left a Ray
    monkeypatch.setattr(connect, "joins_ray", lambda config: connect.address_of(config) is not None)
    change, named, words = CASES[case]
    change(tiny.tree)
    output = tiny.directory / "out"
    line = opmix("validate", tiny.write(), "--set", f"output={output}").only_error()
    assert line.startswith(f"error: {tiny.file}: ")
    assert named in line
    assert words in line
    assert not output.exists()


def test_a_packages_file_system_that_does_not_answer_or_has_no_such_file(opmix: Opmix, tiny: TinyRun) -> None:
    tiny.tree["data"]["domains"]["code"]["path"] = "hf://datasets/nobody-here/nothing"
    line = opmix("validate", tiny.write()).only_error()
    assert "hf://datasets/nobody-here/nothing" in line
    assert "data.domains.code.path" in line


def test_run_is_refused_before_anything_is_written(opmix: Opmix, tiny: TinyRun) -> None:
    tiny.tree["stages"][0]["start"] = {"code": 0}
    before = sorted(path.name for path in tiny.directory.iterdir())
    line = opmix("run", tiny.write(), "--output", tiny.directory / "out").only_error()
    assert "sum to 0" in line
    assert sorted(path.name for path in tiny.directory.iterdir()) == [*before, "run.yaml"]


def test_everything_wrong_is_listed_in_one_go(opmix: Opmix, tiny: TinyRun) -> None:
    """Unknown keys, wrong values, missing files, bounds and resources together."""
    tree = tiny.tree
    tree["train"]["batch_sise"] = 4
    tree["train"]["log_every"] = 0
    tree["probe"]["rnak"] = 4
    tree["data"]["domains"]["code"]["path"] = "gone.jsonl"
    tree["data"]["domains"]["german"] = {"paht": "also-gone.jsonl"}
    tree["data"]["domains"]["mathematics"]["min_share"] = 1
    tree["data"]["domains"]["code"]["min_share"] = 0.1
    tree["stages"][0]["start"] = {"code": -1, "german": 1}
    tree["tokenizer"]["path"] = "/nowhere"
    tree["search"]["gpus"] = 64
    ended = opmix("validate", tiny.write())
    assert ended.code == 2
    wanted = [
        "train.batch_sise = 4: unknown key; did you mean `batch_size`?",
        "train.log_every = 0: must be greater than or equal to 1",
        "probe.rnak = 4: unknown key; did you mean `rank`?",
        "data.domains.german.paht = also-gone.jsonl: unknown key; did you mean `path`?",
        "stages.0.start.code = -1",
        "the least shares sum to 1.1, 0.1 more than 1",
        "gone.jsonl: no file matches",
        "also-gone.jsonl: no file matches",
        "tokenizer.path = /nowhere",
        "search.gpus = 64",
    ]
    for words in wanted:
        assert any(words in line for line in ended.errors), words
    assert all(line.startswith(f"error: {tiny.file}: ") for line in ended.errors)
    assert len(ended.errors) == len(set(ended.errors)) <= len(wanted) + 2


def test_two_domains_of_one_name(opmix: Opmix, tiny: TinyRun) -> None:
    text = tiny.write().read_text()
    tiny.file.write_text(text.replace("    german:", "    code:"))
    line = opmix("validate", tiny.file).only_error()
    number = (
        tiny.file.read_text().splitlines().index("    code:", text.splitlines().index("    code:") + 1) + 1
    )
    assert (
        line
        == f"error: {tiny.file}: is not valid YAML in line {number}: the key 'code' is given twice; mend the line"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; start from `examples/quickstart.yaml`"),
        (b"\x93NUMPY\x01\x00\xff\xfe", "is not text; name a YAML file in UTF-8"),
        (b"- a\n- b\n", "must be a mapping of keys to values"),
        (b"a: [1\n", "is not valid YAML in line"),
        (b"a: \x00\n", "is not valid YAML"),
    ],
)
def test_a_configuration_that_is_none(opmix: Opmix, tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    line = opmix("run", file).only_error()
    assert line.startswith(f"error: {file}: ")
    assert words in line


def test_a_configuration_that_is_not_there_or_a_directory(opmix: Opmix, tmp_path: Path) -> None:
    assert opmix("run", tmp_path / "x.yaml").only_error().endswith("x.yaml: no such file; check the path")
    assert opmix("run", tmp_path).only_error().endswith(f"{tmp_path}: is a directory; name a YAML file")


def test_a_search_space_file_that_is_wrong_is_named_itself(opmix: Opmix, tiny: TinyRun) -> None:
    space = tiny.directory / "space.yaml"
    space.write_text(yaml.safe_dump({"kind": "bounded", "lowr": 0.1}))
    tiny.tree["search"]["space"] = "space.yaml"
    assert (
        f"{space}: lowr = 0.1: unknown key; did you mean `lower`?"
        in opmix("validate", tiny.write()).only_error()
    )
    space.write_text(yaml.safe_dump({"kind": "bounded", "lower": {"code": 0.7, "german": 0.6}}))
    line = opmix("validate", tiny.write()).only_error()
    assert "least shares sum to 1.3" in line
