"""Names of metrics in any script, and which way they are better: by the name, by the values, or asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from opmix_ray.exchange.column_names import bookkeeping, words
from opmix_ray.fit import read_sweep
from tests.fit.test_columns import DOMAINS, LOSSES, files

SCRIPTS = ["损失", "потеря", "perte réseau", "निहानि", "فقدان", "손실/검증", "損失_テスト", "Ω", "%", "🙂"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_metrics_are_named_in_any_script(tmp_path: Path, name: str) -> None:
    sweep = read_sweep(*files(tmp_path, more_metrics={name: LOSSES[:, 1].tolist()}))
    assert sweep.metric_names == [*(f"{domain}_loss" for domain in DOMAINS), name]


def test_words_of_other_scripts_are_words() -> None:
    assert words("Потеря_на коде") == ["потеря", "на", "коде"]
    assert words("perte réseau") == ["perte", "réseau"]
    assert bookkeeping(" ") == "it has no name"
