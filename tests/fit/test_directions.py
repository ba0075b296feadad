"""Names of metrics in any script, and which way they are better: by the name, by the values, or asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.exchange.column_names import bookkeeping, is_higher_better, is_metric, words
from opmix_ray.exchange.columns import maximised
from opmix_ray.fit import read_sweep
from tests.fit.test_columns import DOMAINS, LOSSES, ROWS, files

SCRIPTS = ["损失", "потеря", "perte réseau", "निहानि", "فقدان", "손실/검증", "損失_テスト", "Ω", "%", "🙂"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_metrics_are_named_in_any_script(tmp_path: Path, name: str) -> None:
    sweep = read_sweep(*files(tmp_path, more_metrics={name: LOSSES[:, 1].tolist()}))
    assert sweep.metric_names == [*(f"{domain}_loss" for domain in DOMAINS), name]


def test_words_of_other_scripts_are_words() -> None:
    assert words("Потеря_на коде") == ["потеря", "на", "коде"]
    assert words("perte réseau") == ["perte", "réseau"]
    assert bookkeeping(" ") == "it has no name"


JOINED = ["exactmatch", "ExactMatch", "quasiexactmatch", "passrate", "winrate", "solverate", "f1score", "webacc",
          "accnorm", "valaccuracy", "mathscore", "passat1", "eval/exactmatch"]  # fmt: skip
LOWERED = [
    "errorrate",
    "failrate",
    "mismatch",
    "inaccuracy",
    "incorrect",
    "webloss",
    "valppl",
    "accloss",
    "hallucinationrate",
]
NEITHER = ["gloss", "floss", "desktop", "laptop", "topic", "macro", "recap", "darwin", "winter", "code"]


def test_words_written_as_one_say_the_direction() -> None:
    assert [name for name in JOINED if not is_higher_better(name)] == []
    assert [name for name in LOWERED if is_higher_better(name) or not is_metric(name)] == []
    assert [name for name in NEITHER if is_metric(name)] == []


def values(low: float, high: float) -> list[object]:
    return np.random.default_rng(0).uniform(low, high, ROWS).tolist()


RATES, DOUBT = "higher is better, and metrics are minimised", "neither name nor values say"
COLUMNS: dict[str, tuple[dict[str, tuple[float, float]], dict[str, str]]] = {
    "gsm8k in per cent": ({"gsm8k": (6.5, 9.3)}, {"gsm8k": DOUBT}),
    "few per cent": ({"human_eval": (1.2, 4.3)}, {"human_eval": DOUBT}),
    "a rate beside per cent": ({"mmlu": (0.3, 0.5), "gsm8k": (6.5, 9.3)}, {"mmlu": RATES, "gsm8k": DOUBT}),
    "a rate beside a loss": ({"mmlu": (0.3, 0.5), "lambada": (2.1, 3.3)}, {"mmlu": RATES, "lambada": DOUBT}),
    "rates in two units": ({"mmlu": (0.3, 0.5), "arc_easy": (40, 60)}, {"mmlu": RATES, "arc_easy": RATES}),
    "of ten": ({"mt_bench": (4, 9)}, {"mt_bench": DOUBT}),
    "near chance": ({"mmlu_pro": (9, 13)}, {"mmlu_pro": DOUBT}),
    "logs": ({"gsm8k": (-3, -1)}, {"gsm8k": DOUBT}),
    "points": ({"arena": (1000, 1200)}, {"arena": DOUBT}),
    "less than chance": ({"mmlu": (1.4, 2.6)}, {}),
    "losses": ({"mmlu": (1.4, 2.6), "piqa": (1.1, 1.9), "arc": (0.8, 2), "gsm8k": (1.2, 4), "mbpp": (0.9, 3)}, {}),
    "three losses and per cent": ({"mmlu": (1, 3), "piqa": (1, 2), "arc": (1, 2), "gsm8k": (7, 14)}, {"gsm8k": DOUBT}),
    "two losses": ({"mmlu": (1.4, 2.6), "piqa": (1.1, 1.9), "gsm8k": (1.2, 4)}, {"gsm8k": DOUBT}),
    "a loss by name": ({"gsm8k_loss": (1.2, 4), "mmlu_bpb": (0.3, 0.5)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMNS)
def test_every_benchmark_is_judged_by_itself_and_asked_about_where_in_doubt(case: str) -> None:
    columns, expected = COLUMNS[case]
    names, metrics = list(columns), np.array([values(*ends) for ends in columns.values()], dtype=float).T
    asked: list[str] = []
    maximised(names, metrics, ask=lambda question: not asked.append(question))  # type: ignore[func-returns-value]
    assert asked == [f"`{name}`: is higher better?" for name in expected]
    assert maximised(names, metrics, minimise=["*"]) == {}
    if not expected:
        assert maximised(names, metrics) == {}
        return
    with pytest.raises(UserError) as caught:
        maximised(names, metrics)
    parts = str(caught.value).split("; ")
    for name, said in expected.items():
        assert any(f"`{name}`" in part and said in part for part in parts[:-1])
        assert f"--maximise '{name}'" in parts[-1]
    assert maximised(names, metrics, decides=[]) == {
        name: 1.0 if columns[name][1] <= 1 else 100.0 for name, said in expected.items() if said == RATES
    }


def test_tables_of_olmix_need_no_word() -> None:
    """Bits per byte under the names of benchmarks: of three of them chance alone would get more right."""
    names = [
        "arc_easy:rc::olmes",
        "hellaswag:rc::olmes",
        "mmlu_anatomy:rc::olmes",
        "codex_humaneval:3shot::none",
        "lambada",
    ]
    assert maximised(names, np.array([values(1.2, 4.4) for _ in names], dtype=float).T) == {}
