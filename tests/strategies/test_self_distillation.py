"""Self-distillation: prompts out of packed rows, reverse KL to a teacher that sees the demonstration."""

from __future__ import annotations

import pytest
import torch

from opmix_ray.config.strategy import SelfDistillationConfig
from opmix_ray.strategies.self_distillation import DistillationModule, examples_of, reverse_kl
from tests.model.tiny_models import tiny as tiny_model

SETTINGS = SelfDistillationConfig(max_new_tokens=4)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 0, 11, 12, 13, 14, 0]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1]], dtype=torch.bool)


@pytest.fixture
def module() -> DistillationModule:
    torch.manual_seed(0)
    return DistillationModule(tiny_model("llama"), SETTINGS)


def test_prompts_and_demonstrations_come_out_of_packed_rows() -> None:
    found = [(prompt.tolist(), answer.tolist()) for prompt, answer in examples_of(IDS[0], MASK[0])]
    assert found == [([5, 6, 7], [8, 9, 10, 0]), ([11, 12], [13, 14, 0])]
    assert examples_of(IDS[0], torch.ones(12, dtype=torch.bool)) == []
    assert len(examples_of(IDS[0], MASK[0].roll(3))) == 1  # an answer without its prompt is left out


def test_reverse_kl_is_zero_for_the_same_and_positive_for_another() -> None:
    one, other = torch.randn(2, 3, 7).log_softmax(-1), torch.randn(2, 3, 7).log_softmax(-1)
    assert reverse_kl(one, one).abs().max() == 0
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=one), torch.distributions.Categorical(logits=other)
    )
    assert torch.allclose(reverse_kl(one, other), expected, atol=1e-6)


def test_the_gradient_reaches_the_student_alone_and_draws_it_to_the_teacher(
    module: DistillationModule,
) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    losses = []
    for _ in range(16):
        torch.manual_seed(1)  # the same answers to compare on
        loss, targets, _ = module(IDS, MASK)
        assert int(targets) == 7
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach() / targets))
    assert losses[0] > 0
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_tokens_are_counted_by_what_was_done_with_them(module: DistillationModule) -> None:
    module(IDS, MASK)
    trained, forwarded = module.take_counts()
    prompts, shown = 3 + 2, (3 + 4 + 3) + (2 + 3 + 2)
    answers = trained - prompts
    assert 2 <= answers <= 2 * SETTINGS.max_new_tokens
    assert forwarded == prompts + shown + 2 * answers
    assert module.take_counts() == (0, 0)


def test_rows_without_a_prompt_give_no_loss_but_a_gradient_of_zero(module: DistillationModule) -> None:
    loss, _, _ = module(IDS, torch.ones_like(MASK))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_the_same_random_state_gives_the_same_loss(module: DistillationModule) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(float(module(IDS, MASK)[0].detach()))
    assert found[0] == found[1]


def test_the_teacher_follows_slowly_and_a_checkpoint_takes_it_along(module: DistillationModule) -> None:
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=0.1)
    first = [p.clone() for p in module.teacher.parameters()]
    for _ in range(3):
        loss, _, _ = module(IDS, MASK)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.after_step()
    weights = zip(module.teacher.parameters(), first, module.model.parameters(), strict=True)
    moved = [(p - q).norm() / (s - q).norm() for p, q, s in weights]
    assert all(0 < share < 0.03 for share in moved)  # three steps of 1 % each, the student moving on
    assert all(p.grad is None for p in module.teacher.parameters())

    module.keep(optimizer)
    state = optimizer.state_dict()
    other = DistillationModule(module.model, SETTINGS)
    again = torch.optim.AdamW(other.model.parameters(), lr=0.1)
    again.load_state_dict(state)
    other.recall(again)
    for mine, theirs in zip(other.teacher.parameters(), module.teacher.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    loss, _, _ = other(IDS, MASK)
    loss.backward()
    again.step()
