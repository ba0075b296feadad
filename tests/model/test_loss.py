"""The loss is Hugging Face's, over the targets that count, whatever the chunks, the batches and the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from opmix_ray.model import loss as loss_module
from opmix_ray.model.loss import (
    SetLoss,
    compute_context,
    evaluate_sets,
    has_plain_head,
    sequence_losses,
    training_loss,
)
from opmix_ray.model.probe import attach
from tests.model.tiny_models import CONFIGS, PROBE, SCALED_CONFIGS, VOCAB, made_probes, tiny, tokens

ALL = [*CONFIGS, *SCALED_CONFIGS]


def by_hand(model: PreTrainedModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Nats of each sequence, from the model's own logits and a plain softmax in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)).logits.double()
    chosen = torch.log_softmax(logits, dim=-1)[:, :-1].gather(2, torch.from_numpy(ids)[:, 1:, None])[..., 0]
    return -(chosen * torch.from_numpy(mask)[:, 1:]).sum(dim=1).numpy()


@pytest.mark.parametrize("name", ALL)
def test_unmasked_loss_is_hugging_faces(name: str) -> None:
    model, (ids, _) = tiny(name), tokens()
    tensor = torch.from_numpy(ids)
    nats, count = sequence_losses(model, tensor, torch.ones_like(tensor, dtype=torch.bool))
    with torch.no_grad():
        theirs = model(input_ids=tensor, labels=tensor).loss.item()
    assert nats.dtype == torch.float64
    assert count.tolist() == [11] * 5
    assert (nats.sum() / count.sum()).item() == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_masked_loss_by_hand(name: str) -> None:
    model, (ids, mask) = tiny(name), tokens()
    found = evaluate_sets(model, {"x": (ids, mask)}, 2, autocast=False)["x"]
    np.testing.assert_allclose(found.nats, by_hand(model, ids, mask), rtol=1e-5)
    np.testing.assert_array_equal(found.tokens, mask[:, 1:].sum(axis=1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_training_tells_the_loss_of_each_sequence(
    name: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(loss_module, "can_fuse", lambda head, hidden: False)
        monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 7 * VOCAB)
    model, (ids, mask) = tiny(name), tokens()
    mask[2] = False
    nats, _, found = training_loss(model, torch.from_numpy(ids), torch.from_numpy(mask))
    assert found.dtype == torch.float64
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), by_hand(model, ids, mask), rtol=1e-5)
    assert found[2] == 0
    assert found.sum().item() == pytest.approx(nats.item(), rel=1e-6)


def test_the_first_token_never_counts_and_a_masked_one_changes_nothing() -> None:
    model, (ids, mask) = tiny("llama"), tokens()
    flipped = mask.copy()
    flipped[:, 0] = ~flipped[:, 0]
    one, other = (evaluate_sets(model, {"x": (ids, m)}, 8, autocast=False)["x"] for m in (mask, flipped))
    np.testing.assert_array_equal(one.nats, other.nats)
    mask[:, -1] = False  # the last token is no target now, and nothing comes after it
    changed = ids.copy()
    changed[:, -1] = (changed[:, -1] + 1) % VOCAB
    one, other = (evaluate_sets(model, {"x": (i, mask)}, 8, autocast=False)["x"] for i in (ids, changed))
    np.testing.assert_array_equal(one.nats, other.nats)


def test_nothing_to_predict() -> None:
    model, (ids, mask) = tiny("llama"), tokens()
    mask[1] = False
    found = evaluate_sets(model, {"x": (ids, mask), "none": (ids, np.zeros_like(mask))}, 2, autocast=False)
    assert found["x"].nats[1] == found["x"].tokens[1] == 0
    assert math.isnan(found["none"].mean)
    assert evaluate_sets(model, {"x": (ids[:0], mask[:0])}, 2, autocast=False)["x"].nats.shape == (0,)
    nats, count, _ = training_loss(model, torch.from_numpy(ids), torch.zeros(ids.shape, dtype=torch.bool))
    assert nats.item() == count.item() == 0


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma2"])
def test_chunks_change_neither_loss_nor_gradient(name: str, monkeypatch) -> None:
    ids, mask = (torch.from_numpy(array) for array in tokens())
    results, sequences = [], []
    for chunk in (loss_module.CHUNK_LOGITS, 3 * VOCAB):
        monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk)
        model = tiny(name)
        with torch.no_grad():
            sequences.append(sequence_losses(model, ids, mask)[0])
        nats, count, _ = training_loss(model, ids, mask)
        (nats / count).backward()
        results.append((nats.item(), {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(*sequences, rtol=1e-6, atol=0)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for key, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite"])
def test_training_gradients_are_hugging_faces(name: str) -> None:
    ids, mask = (torch.from_numpy(array) for array in tokens())
    ours, theirs = tiny(name), tiny(name)
    nats, count, _ = training_loss(ours, ids, mask)
    (nats / count).backward()
    theirs(input_ids=ids, labels=ids.masked_fill(~mask, -100)).loss.backward()
    for (key, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7, msg=key)


def test_logits_are_never_made_for_the_whole_batch(monkeypatch) -> None:
    model, (ids, mask) = tiny("llama"), tokens(count=8, length=40)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 16 * VOCAB)
    rows: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda m, a, out: rows.append(out.shape[0]))
    evaluate_sets(model, {"warm": (ids[:1], mask[:1])}, 1, autocast=False)
    rows.clear()
    evaluate_sets(model, {"x": (ids, mask)}, 8, autocast=False)
    handle.remove()
    assert max(rows) <= 16
    assert sum(rows) == mask[:, 1:].sum()


def test_the_head_is_applied_where_the_target_counts_only() -> None:
    model, (ids, mask) = tiny("llama"), tokens()
    has_plain_head(model)
    counted = []
    for m in (np.ones_like(mask), mask):
        with FlopCounterMode(display=False) as counter:
            evaluate_sets(model, {"x": (ids, m)}, 8, autocast=False)
        counted.append(counter.get_total_flops())
    assert counted[0] - counted[1] == 2 * 32 * VOCAB * (~mask[:, 1:]).sum()


@pytest.mark.parametrize("name", ALL)
def test_scaled_or_capped_logits_are_found_out_on_fresh_weights(name: str) -> None:
    model = tiny(name)
    state = torch.get_rng_state()
    assert has_plain_head(model) == (name in CONFIGS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_mode_as_it_was(training: bool) -> None:
    model = tiny("gpt2").train(training)  # GPT-2 has dropout
    sets = {"x": tokens()}
    first, second = (evaluate_sets(model, sets, 4, autocast=False)["x"].mean for _ in range(2))
    assert first == second
    assert model.training is training
    assert all(module.training is training for module in model.modules())


def test_a_models_probe_counts_in_its_loss() -> None:
    model, (ids, mask) = tiny("llama"), tokens()
    probe = made_probes(model, 1)[0]
    peft_model = attach(model, PROBE, seed=0)
    sets = {"x": (ids, mask)}
    before = evaluate_sets(peft_model, sets, 4, autocast=False)["x"].mean
    for key, parameter in peft_model.named_parameters():
        if ".lora_B." in key:
            layer = key.removeprefix("base_model.model.").split(".lora_B.")[0]
            parameter.data = torch.from_numpy(probe.factors[layer][1])
    found = evaluate_sets(peft_model, sets, 4, autocast=False)["x"]
    assert abs(found.mean - before) > 1e-3
    np.testing.assert_allclose(found.nats, by_hand(peft_model, ids, mask), rtol=1e-5)


def test_autocast_computes_in_bfloat16_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opmix_ray.model.loss.has_bfloat16", lambda device: True)
    model, sets = tiny("llama"), {"x": tokens()}
    seen: list[torch.dtype] = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    off, on = (evaluate_sets(model, sets, 8, autocast=flag)["x"].mean for flag in (False, True))
    hook.remove()
    assert {torch.float32, torch.bfloat16} == set(seen)
    assert off != on == pytest.approx(off, rel=1e-2)
    with compute_context(False, "cpu"):
        assert F.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_a_processor_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("loss", "interpolate"):
        monkeypatch.setattr(f"opmix_ray.model.{name}.has_bfloat16", lambda device: False)
    model, sets = tiny("llama"), {"x": tokens()}
    off, on = (evaluate_sets(model, sets, 8, autocast=flag)["x"].nats for flag in (False, True))
    np.testing.assert_array_equal(on, off)


def test_set_loss_in_every_unit() -> None:
    loss = SetLoss(np.array([4.0, 2.0]), np.array([3, 1]))
    assert loss.mean == 1.5
    assert loss.perplexity == pytest.approx(math.e**1.5)
    assert loss.bits_per_byte(4.0) == pytest.approx(1.5 / math.log(2) / 4)
    assert SetLoss(np.array([1e6]), np.array([1])).perplexity == math.inf
