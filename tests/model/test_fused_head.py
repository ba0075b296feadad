"""The fused loss and its gradients are those of head and cross-entropy, one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from opmix_ray.model import fused_head
from opmix_ray.model.fused_head import can_fuse, fused_head_loss
from opmix_ray.model.loss import compute_context, training_loss
from tests.model.tiny_models import tiny, tokens


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_the_same(
    dtype: torch.dtype, slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_head, "LEAST_SLICE", 1)
    monkeypatch.setattr(fused_head, "SLICE_LOGITS", 50 * -(-40 // slices))
    torch.manual_seed(0)
    weight = torch.randn(50, 16).to(dtype).requires_grad_()
    hidden = torch.randn(40, 16).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (40,))
    exact = F.cross_entropy((hidden.float() @ weight.float().T), targets, reduction="sum")
    wanted = torch.autograd.grad(0.5 * exact, (hidden, weight))
    found, each = fused_head_loss(hidden, weight, targets)
    made = torch.autograd.grad(0.5 * found, (hidden, weight))
    apart = F.cross_entropy((hidden.float() @ weight.float().T), targets, reduction="none")
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert found.item() == pytest.approx(exact.item(), rel=tolerance)
    torch.testing.assert_close(each, apart.detach(), rtol=tolerance, atol=tolerance)
    assert not each.requires_grad
    for one, other in zip(made, wanted, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def test_a_frozen_head_gets_no_gradient() -> None:
    weight, hidden = torch.randn(50, 16), torch.randn(8, 16, requires_grad=True)
    fused_head_loss(hidden, weight, torch.arange(8))[0].backward()
    assert hidden.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("autocast", [False, True])
def test_training_takes_the_same_steps_with_it(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    monkeypatch.setattr("opmix_ray.model.loss.has_bfloat16", lambda device: True)
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr("opmix_ray.model.loss.can_fuse", lambda head, hidden: False)
        model = tiny("qwen2").train()
        ids, mask = (torch.from_numpy(array) for array in tokens(6, 12))
        with compute_context(autocast, "cpu"):
            nats, _, _ = training_loss(model, ids, mask)
        (nats / 10).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    tolerance = 3e-2 if autocast else 1e-5
    for name, one in gradients[0].items():
        other = gradients[1][name]
        assert one is not None
        assert other is not None
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max()), name


def test_heads_with_a_bias_or_a_hook_class_of_their_own_are_left_alone() -> None:
    class Own(torch.nn.Linear):
        pass

    hidden = torch.zeros(1, 4)
    assert can_fuse(torch.nn.Linear(4, 8, bias=False), hidden)
    assert not can_fuse(torch.nn.Linear(4, 8), hidden)
    assert not can_fuse(Own(4, 8, bias=False), hidden)
