"""Self-distillation: prompts out of packed rows, reverse KL to a teacher that sees the demonstration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opmix_ray.config.strategy import SelfDistillationConfig
from opmix_ray.data.prepare import prepare
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.runner.forecast import Forecast
from opmix_ray.strategies import self_distillation
from opmix_ray.strategies.self_distillation import (
    DistillationModule,
    _Drawn,
    examples_of,
    reverse_kl,
    teacher_context,
)
from tests.model.tiny_models import tiny as tiny_model
from tests.strategies.test_runs import instructions
from tests.support import TinyRun

ROLLOUTS = 3
SETTINGS = SelfDistillationConfig(max_new_tokens=4, rollouts=ROLLOUTS)
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


def test_the_end_of_text_after_a_demonstration_is_shown_only_where_it_ends_turns() -> None:
    model = tiny_model("llama")
    for ends in (0, [0, 63]):
        model.config.eos_token_id = ends
        contexts = [teacher_context(model, example).tolist() for example in examples_of(IDS[0], MASK[0])]
        assert contexts == [[5, 6, 7, 8, 9, 10, 5, 6, 7], [11, 12, 13, 14, 11, 12]]
        chat = torch.tensor([3, 5, 0, 3, 6]), torch.tensor([7, 0])
        assert teacher_context(model, chat).tolist() == [3, 5, 0, 3, 6, 7, 0, 3, 5, 0, 3, 6]
        cut = torch.tensor([5, 6]), torch.tensor([7, 8])
        assert teacher_context(model, cut).tolist() == [5, 6, 7, 8, 5, 6]


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
    found = module.take_counts()
    prompts, shown = 3 + 2, (3 + 3 + 3) + (2 + 2 + 2)  # without the end of text
    answers = found["main"] - ROLLOUTS * prompts
    assert ROLLOUTS * 2 <= answers <= ROLLOUTS * 2 * SETTINGS.max_new_tokens
    assert found["answers"] == found["main"]
    assert found["teacher"] == ROLLOUTS * shown + answers
    assert module.take_counts() == dict.fromkeys(found, 0)


def test_rows_without_a_prompt_give_no_loss_but_a_gradient_of_zero(module: DistillationModule) -> None:
    loss, _, _ = module(IDS, torch.ones_like(MASK))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def answered(module: DistillationModule, step: int, *rows: int) -> tuple[list[list[int]], float]:
    """What was answered in a batch of these rows, and the sum of its loss."""
    answers: list[list[int]] = []
    real = module._answer

    def seen(*arguments: Any) -> Any:
        found, valid = real(*arguments)
        answers.extend(a[v].tolist() for a, v in zip(found, valid, strict=True))
        return found, valid

    module._answer = seen  # type: ignore[method-assign]
    module.begin_step(step)
    ids = torch.cat([IDS.roll(-row) if row else IDS for row in rows])
    loss = float(module(ids, torch.cat([MASK] * len(rows)))[0].detach())
    module._answer = real  # type: ignore[method-assign]
    return answers, loss


def test_answers_depend_on_seed_step_and_row_and_not_on_who_has_the_row(module: DistillationModule) -> None:
    """Two workers with a row each do what one does with both, whatever their random states."""
    both, whole = answered(module, 3, 0, 1)
    parts = [answered(module, 3, row) for row in (0, 1)]
    assert both == parts[0][0] + parts[1][0]
    assert whole == pytest.approx(parts[0][1] + parts[1][1], rel=1e-5)
    assert len({tuple(answer) for answer in both}) > ROLLOUTS, "rollouts differ"
    assert answered(module, 4, 0)[0] != parts[0][0]
    other = DistillationModule(module.model, SETTINGS, seed=1)
    assert answered(other, 3, 0)[0] != parts[0][0]


def test_the_loss_is_the_mean_over_rollouts_weighed_by_demonstrations(module: DistillationModule) -> None:
    """By hand, one answer after the other, without padding, cache or blocks."""
    answers, loss = answered(module, 0, 0)
    examples = [e for e in examples_of(IDS[0], MASK[0]) for _ in range(ROLLOUTS)]
    expected = 0.0
    for (prompt, demonstration), answer in zip(examples, answers, strict=True):
        logs = []
        for context in (prompt, teacher_context(module.model, (prompt, demonstration))):
            logits = module.model(torch.cat([context, torch.tensor(answer)])[None]).logits[0]
            logs.append(logits[len(context) - 1 : -1].log_softmax(-1))
        expected += len(demonstration) * float(reverse_kl(*logs).mean().detach()) / ROLLOUTS
    assert loss == pytest.approx(expected, rel=1e-4)


def test_tokens_are_drawn_as_often_as_they_are_likely(module: DistillationModule) -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0, 1.0]]).expand(4000, 4)
    draws = torch.rand(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = _Drawn(draws, 2.0, prompt=3)(torch.zeros(4000, 3, dtype=torch.long), scores).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares.tolist() == pytest.approx((scores[0] / 2).softmax(-1).tolist(), abs=0.03)


def test_many_logits_are_made_in_blocks(module: DistillationModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same loss and gradient."""
    found = []
    for size in (1 << 24, 1 << 9):
        monkeypatch.setattr(self_distillation, "CHUNK_LOGITS", size)
        module.zero_grad()
        loss = module(IDS, MASK)[0]
        loss.backward()
        found.append([float(loss.detach()), *(p.grad.norm().item() for p in module.model.parameters())])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


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


def test_an_on_policy_step_is_forecast_from_prompts_and_demonstrations(tiny: TinyRun) -> None:
    """From a few rows nearly what all rows give by hand."""
    instructions(tiny)
    tiny.tree["strategy"] = "self-distillation"
    config = tiny.load(
        "strategies.self_distillation.rollouts=3", "strategies.self_distillation.max_new_tokens=4"
    )
    data = prepare(config)
    forecast = Forecast(config, data)
    whole = forecast.training("self-distillation")
    eight = config.strategies.self_distillation.but(rollouts=24)
    changed = config.strategies.but(self_distillation=eight)
    more = Forecast(config.but(strategies=changed), data)
    assert more.training("self-distillation") == pytest.approx(8 * whole)

    expected, costs = 0.0, forecast.costs
    for name, share in Mixture.uniform(data.domains).items():
        rows = costs.rows(name, 10_000)
        for ids, mask in rows:
            for prompt, demonstration in examples_of(ids, mask):
                own, answer = len(prompt), min(4, len(demonstration))
                trained, scored = own + answer, 2 * own + len(demonstration) - 1 + answer
                flops = trained * costs.train + (trained + scored) * costs.forward
                expected += 12 * 4 * share * 3 * flops / len(rows)
    assert whole == pytest.approx(expected, rel=0.05)

    with pytest.raises(UserError, match="leaves no prompt"):
        Forecast(tiny.load("strategies.self_distillation.max_new_tokens=60"), data).training(
            "self-distillation"
        )
