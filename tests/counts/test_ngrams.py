"""Counting: what a mixture teaches a set, its derivative, repeats, and what serves a set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opmix_ray.counts.ceilings import DataResponse
from opmix_ray.counts.ngrams import FACTORS, Counts, DataLeft, count_ngrams, sample_rows, smoothing_of
from opmix_ray.laws.base import dump_response, load_response

VOCABULARY, LENGTH = 40, 32


def text(seed: int, offset: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of a small Markov chain on its own part of the vocabulary."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((rows, LENGTH), np.int64)
    for column in range(1, LENGTH):
        ids[:, column] = (ids[:, column - 1] * 3 + rng.integers(0, 3, rows)) % 12
    return ids + offset, np.ones((rows, LENGTH), bool)


@pytest.fixture
def counts() -> Counts:
    """Of a set like the first of three domains."""
    samples = {"like": text(1, 0), "other": text(2, 12), "far": text(3, 24)}
    return count_ngrams({"set": text(9, 0, 20)}, samples, VOCABULARY)["set"]


def left(tokens: float = 2000.0, used: float = 0.0) -> DataLeft:
    return DataLeft(tokens, np.full(3, used), np.full(3, 60.0 * LENGTH))


def test_counts_are_those_of_a_plain_loop() -> None:
    sample, held = text(1, 0, 5), text(9, 0, 3)
    found = count_ngrams({"set": held}, {"like": sample}, VOCABULARY)["set"]
    targets = [tuple(row[i - 2 : i + 1]) for row in held[0] for i in range(2, LENGTH)]
    seen = [tuple(row[i - 2 : i + 1]) for row in sample[0] for i in range(2, LENGTH)]
    for n in range(3):
        expected = [sum(s[2 - n :] == t[2 - n :] for s in seen) for t in targets]
        assert found.words[n, :, 0].tolist() == expected
        assert found.contexts[n, :, 0].tolist() == [
            sum(s[2 - n : 2] == t[2 - n : 2] for s in seen) for t in targets
        ]


def test_the_domain_like_the_set_serves_it_most(counts: Counts) -> None:
    losses = counts.loss(np.eye(3), left())
    assert losses[0] < min(losses[1:]) - 0.5
    serves = counts.for_the_set(np.full(3, 1 / 3), left())
    assert serves.words[0, :, 1:].sum() < 1e-3 * serves.words[0, :, 0].sum()


def test_the_gradient_is_that_of_the_loss(counts: Counts) -> None:
    shares, data, step = np.array([[0.5, 0.3, 0.2]]), left(5000.0, 300.0), 1e-6
    gradient = counts.gradient(shares, data)[0]
    for d in range(3):
        moved = step * np.eye(3)[d]
        change = counts.loss(shares + moved, data) - counts.loss(shares - moved, data)
        assert gradient[d] == pytest.approx(change[0] / (2 * step), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("smooth", [0.5, 0.3])
def test_a_model_ahead_of_counting_is_counted_with_less_smoothing(counts: Counts, smooth: float) -> None:
    data = DataLeft(2000.0, np.array([900.0, 600.0, 300.0]), np.full(3, 60.0 * LENGTH))
    shares = np.array([1 / 2, 1 / 3, 1 / 6])
    now = {"set": float(replace(counts, smooth=smooth).loss(shares[None], data)[0]), "new": 9.0}
    found = smoothing_of({"set": counts, "new": counts}, now, shares, data, unread=["new"])
    assert found == pytest.approx(smooth, rel=0.05)
    sharper = replace(counts, smooth=found)
    more, less = np.array([[0.6, 0.2, 0.2]]), np.array([[0.2, 0.4, 0.4]])
    assert np.diff([c.loss(less, data)[0] - c.loss(more, data)[0] for c in (counts, sharper)])[0] > 0
    assert Counts.from_text(sharper.to_text()).loss(more, data) == pytest.approx(
        sharper.loss(more, data), rel=1e-6
    )
    step = 1e-6 * np.eye(3)[0]
    change = sharper.loss(more + step, data) - sharper.loss(more - step, data)
    assert sharper.gradient(more, data)[0, 0] == pytest.approx(change[0] / 2e-6, rel=1e-4)


@pytest.mark.parametrize(("now", "used"), [({"set": 9.0}, 600.0), ({}, 600.0), ({"set": 0.5}, 0.0)])
def test_a_model_behind_counting_or_not_known_is_counted_as_it_is(
    counts: Counts, now: dict[str, float], used: float
) -> None:
    assert smoothing_of({"set": counts}, now, np.full(3, 1 / 3), left(used=used)) == 1.0


def test_what_no_smoothing_explains_is_counted_with_the_least(counts: Counts) -> None:
    assert smoothing_of({"set": counts}, {"set": 0.1}, np.full(3, 1 / 3), left(used=600.0)) == FACTORS[0]


def test_text_read_again_counts_for_less(counts: Counts) -> None:
    data = left(1e5)
    worth, slope = data.effective(np.array([[0.01, 0.2, 0.79]]))
    assert worth[0, 0] == pytest.approx(1000)
    assert slope[0, 0] == pytest.approx(1e5)
    assert worth[0, 1] < 0.7 * 0.2e5
    assert slope[0, 2] < 0.02 * 1e5


def test_text_read_too_often_does_harm(counts: Counts) -> None:
    data = left(1e5)
    shares = np.array([[0.01, 0.19, 0.8], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]])  # up to 8, 26 and 52 passes
    assert data.harm(np.array([[0.2, 0.25, 0.25]]))[0] == 0
    harm, slope = data.harm(shares)
    assert 0 < harm[1] < harm[0] < harm[2] < 3.0
    assert slope[1, 0] == 0
    step = 1e-6 * np.eye(3)[2]
    change = data.harm(shares + step)[0] - data.harm(shares - step)[0]
    assert slope[:, 2] == pytest.approx(change / 2e-6, rel=1e-4)
    assert (
        np.abs(counts.gradient(shares, data)[2, 2] - slope[2, 2]) < slope[2, 2]
    )  # and it is part of the loss


def test_what_does_not_count_in_the_loss_is_not_counted() -> None:
    ids, mask = text(1, 0)
    mask[:, : LENGTH // 2] = False
    found = count_ngrams({"set": text(9, 0, 4)}, {"answers": (ids, mask)}, VOCABULARY)["set"]
    assert found.sampled[0] == mask[:, 2:].sum()


def test_a_response_goes_through_json_and_keeps_its_slope(counts: Counts) -> None:
    centre = np.full(3, 1 / 3)
    response = DataResponse(
        3.0, centre, 0.9, np.array([0.1, 0.0, -0.1]), 0.2, 0.01 * np.eye(3), counts, left()
    )  # fmt: skip
    again = load_response(dump_response(response))
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    assert again.predict(shares) == pytest.approx(response.predict(shares), rel=1e-5)
    assert again.std(centre[None])[0] == 0.0
    assert response.predict(centre[None])[0] == pytest.approx(3.0)
    step = 1e-6 * (np.eye(3)[0] - np.eye(3)[2])
    slope = response.gradient(shares)[0] @ (step / 1e-6)
    change = response.predict(shares[:1] + step) - response.predict(shares[:1] - step)
    assert slope == pytest.approx(change[0] / 2e-6, rel=1e-4)


def test_samples_are_spread_evenly() -> None:
    assert list(sample_rows(10, 100, 10_000)) == list(range(10))
    some = sample_rows(1000, 100, 1000)
    assert len(some) == 10
    assert some[0] == 0
    assert some[-1] == 999


def test_what_the_model_knows_already_is_not_learned_again() -> None:
    samples = {"like": text(1, 0), "other": text(2, 12), "far": text(3, 24)}
    held = text(9, 0, 20)
    targets = int(held[1][:, 1:].sum())

    def gain(nats: float | None) -> float:
        told = None if nats is None else {"set": np.full(targets, nats)}
        counts = count_ngrams({"set": held}, samples, VOCABULARY, told)["set"]
        again = Counts.from_text(counts.to_text())
        losses = counts.loss(np.eye(3)[:2], left())
        np.testing.assert_allclose(again.loss(np.eye(3)[:2], left()), losses, rtol=1e-5)
        return float(losses[1] - losses[0])

    assert gain(0.05) < 0.2 * gain(None)
    assert gain(0.05) < gain(1.5) < gain(None)
    assert gain(np.log(VOCABULARY)) == pytest.approx(gain(None), rel=0.3)  # a model that knows nothing


def test_the_losses_of_the_targets_that_count_stay_with_them() -> None:
    ids, mask = text(9, 0, 4)
    mask = mask.copy()
    mask[0, 5:9] = mask[2, 1] = mask[3, -1] = False
    rows, columns = mask[:, 1:].nonzero()
    nats = ids[rows, columns + 1] / 10  # a loss that names its word
    counts = count_ngrams({"set": (ids, mask)}, {"like": text(1, 0)}, VOCABULARY, {"set": nats})["set"]
    rows, columns = mask[:, 2:].nonzero()
    assert counts.known == pytest.approx(np.exp(-ids[rows, columns + 2] / 10))


def test_the_gradient_with_a_model_is_that_of_the_loss() -> None:
    samples, held = {"like": text(1, 0), "other": text(2, 12), "far": text(3, 24)}, text(9, 0, 20)
    nats = np.random.default_rng(0).gamma(2.0, 1.0, int(held[1][:, 1:].sum()))
    test_the_gradient_is_that_of_the_loss(
        count_ngrams({"set": held}, samples, VOCABULARY, {"set": nats})["set"]
    )
