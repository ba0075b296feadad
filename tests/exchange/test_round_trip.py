"""What is exported reads back as the same mixture, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opmix_ray.commands.export import export
from opmix_ray.errors import UserError
from opmix_ray.exchange import FORMATS, read_weights
from opmix_ray.mixture import Mixture
from tests.exchange.conftest import MIXTURE, Output

READABLE = (".txt", ".yaml", ".py", "_optimal.json")


def read_back(file: str, output: Output) -> dict[str, float]:
    """Shares of tokens out of an exported file."""
    found = read_weights(file)
    weights = found.over(output.paths())
    if found.unit == "documents":
        weights = {name: weight * output.lengths()[name] for name, weight in weights.items()}
    return Mixture(weights).shares


def main_file(files: list[str]) -> str:
    """The one with the weights."""
    return next(file for file in files if file.endswith(READABLE) and not file.endswith("fit.yaml"))


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("megatron", "nemo", "axolotl")])
def test_names_bring_the_mixture_back(format: str, text_run: Output, tmp_path: Path) -> None:
    found = export(str(text_run.directory), format, str(tmp_path / "to"))
    assert read_back(main_file(found.files), text_run) == pytest.approx(MIXTURE, abs=1e-9)


@pytest.mark.parametrize("format", ["megatron", "nemo"])
def test_paths_bring_the_mixture_back(format: str, megatron_run: Output, tmp_path: Path) -> None:
    found = export(str(megatron_run.directory), format, str(tmp_path / "to"))
    assert read_back(found.files[0], megatron_run) == pytest.approx(MIXTURE, abs=1e-9)


def test_rows_of_axolotl_bring_the_mixture_back_as_far_as_rows_are_whole(
    text_run: Output, tmp_path: Path
) -> None:
    found = export(str(text_run.directory), "axolotl", str(tmp_path / "to"), tokens=2_000_000)
    assert read_back(found.files[0], text_run) == pytest.approx(MIXTURE, abs=1e-3)


@pytest.mark.parametrize("format", ["megatron-energon", "llamafactory", "datasets", "streaming"])
def test_samples_of_one_length_need_no_conversion(format: str, text_run: Output, tmp_path: Path) -> None:
    found = export(str(text_run.directory), format, str(tmp_path / "to"), unit="tokens")
    assert found.weights == pytest.approx(MIXTURE)
    back = read_weights(main_file(found.files))
    assert back.unit == "tokens"
    assert back.over(text_run.paths()) == pytest.approx(MIXTURE, abs=1e-9)


def test_a_run_itself_is_read_too(text_run: Output) -> None:
    assert read_back(str(text_run.directory / "mixture.json"), text_run) == pytest.approx(MIXTURE)


def test_several_files_of_a_domain_are_added_up(chat_run: Output, tmp_path: Path) -> None:
    found = export(str(chat_run.directory), "llamafactory", str(tmp_path))
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert list(info) == ["short", "long", "long.1"]
    assert read_back(main_file(found.files), chat_run) == pytest.approx({"short": 0.5, "long": 0.5}, abs=1e-9)


def test_long_documents_get_fewer_draws(chat_run: Output, tmp_path: Path) -> None:
    lengths = chat_run.lengths()
    weights = export(str(chat_run.directory), "llamafactory", str(tmp_path)).weights
    assert lengths["long"] > 1.5 * lengths["short"]
    assert weights["short"] / weights["long"] == pytest.approx(lengths["long"] / lengths["short"])


@pytest.mark.parametrize(
    ("name", "text", "unit", "expected"),
    [
        ("shares.yaml", "code: 3\ngerman: 1\n", "tokens", {"code": 0.75, "german": 0.25}),
        ("blend.txt", "30 {code} 10 {german}", "tokens", {"code": 0.75, "german": 0.25}),
        (
            "split.json",
            '{{"train": ["30", "{code}", "10", "{german}"], "valid": ["{code}"], "test": ["{code}"]}}',
            "tokens",
            {"code": 0.75, "german": 0.25},
        ),
        (
            "metadataset.yaml",
            "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n"
            "      - {{weight: 3, path: {code}}}\n      - {{weight: 1, path: {german}}}\n",
            "documents",
            {"code": 0.75, "german": 0.25},
        ),
        (
            "train.yaml",
            "dataset: code, german\nmix_strategy: interleave_under\ninterleave_probs: 0.75,0.25\n",
            "documents",
            {"code": 0.75, "german": 0.25},
        ),
        (
            "foundry.yaml",
            "train_loader:\n  dataset:\n    streams:\n      a: {{local: {code}, proportion: 3}}\n"
            "      german: {{remote: s3://b/g, proportion: 1}}\n",
            "documents",
            {"code": 0.75, "german": 0.25},
        ),
        (
            "registry.py",
            "loader = X.Config(sources=[HFDataSource(dataset='code', weight=3), HFDataSource(dataset='german')])\n",
            "tokens",
            {"code": 0.75, "german": 0.25},
        ),
        (
            "experiment.yaml",
            "priors:\n  token_counts: {{code: 300, german: 100}}\n",
            "tokens",
            {"code": 0.75, "german": 0.25},
        ),
    ],
)
def test_files_that_others_wrote(
    name: str, text: str, unit: str, expected: dict[str, float], text_run: Output, tmp_path: Path
) -> None:
    paths = {domain: found[0] for domain, found in text_run.paths().items()}
    file = tmp_path / name
    file.write_text(text.format(**paths))
    found = read_weights(str(file))
    assert found.unit == unit
    assert found.over(text_run.paths()) == pytest.approx(expected)


def test_paths_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "blend.txt").write_text("0.5 code_text_document 0.5 ../x/prose_text_document")
    domains = {
        "code": [f"{tmp_path}/code_text_document.bin"],
        "prose": [f"{tmp_path.parent}/x/prose_text_document"],
    }
    assert read_weights(str(tmp_path / "blend.txt")).over(domains) == {"code": 0.5, "prose": 0.5}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "__class__: MetadatasetV2\nsplits: [1]\n"),
        ("a.yaml", "__class__: MetadatasetV2\nsplits: {train: {blend: [{path: code, subflavors: 3}]}}\n"),
        ("a.yaml", "sources: [{source_name: code}]\n"),
        ("a.yaml", "dataset: {blend: [[code, code], [1]]}\n"),
        ("a.yaml", "dataset: {blend: [code]}\n"),
        ("a.txt", "-1 code"),
        ("a.yaml", "streams: {code: {local: x}}\n"),
        ("a.yaml", "streams: {code: {local: x, proportion: -1}}\n"),
        ("a.yaml", "dataset: {code: 1}\ninterleave_probs: [[]]\n"),
        ("a.yaml", "code: 0\n"),
        ("a.yaml", f"code: {10**400}\n"),
        ("a.yaml", "code: .nan\n"),
        ("a.json", "[" * 100_000),
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.py", "x = ("),
        ("a.py", "WEIGHTS = {'code': open('/etc/passwd')}"),
        ("a.py", "HFDataSource(dataset='code', weight=1 / 0)"),
        ("a.txt", "0.3 code 0.7"),
        ("a.txt", ""),
        ("a.txt", "\0"),
    ],
)
def test_broken_files_end_in_one_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_weights(str(tmp_path / name)).over({"code": ["code"]})
    assert len(str(caught.value).splitlines()) == 1
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["megatron", "nemo"])
def test_text_that_is_still_to_be_converted_is_read_back(name: str, text_run: Output, tmp_path: Path) -> None:
    """Both name what Megatron's tools will make of the text, which is no path of a domain."""
    place = tmp_path / "there"
    found = export(str(text_run.directory), name, str(place))
    assert "_text_document" in Path(main_file(found.files)).read_text()
    assert read_back(main_file(found.files), text_run) == pytest.approx(MIXTURE, abs=1e-9)


def test_of_two_files_that_would_be_converted_to_one_none_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "blend.txt").write_text(f"1 {tmp_path}/a_text_document")
    domains = {"code": [f"{tmp_path}/a.jsonl"], "prose": [f"{tmp_path}/a.txt"]}
    with pytest.raises(UserError, match="neither the name nor the path"):
        read_weights(str(tmp_path / "blend.txt")).over(domains)


def test_a_domain_that_gets_nothing_may_be_given_a_path_and_is_not_written(
    text_run: Output, tmp_path: Path
) -> None:
    file = tmp_path / "mixture.json"
    file.write_text(json.dumps({"mixture": {"code": 1.0, "german": 4e-21, "novel": 0}}))
    found = export(str(file), "megatron", str(tmp_path / "out"), paths=["code=/c", "german=/g", "novel=/n"])
    assert Path(found.files[0]).read_text().split() == ["1.0", "/c"]
