"""How large a model, how many steps, and how much to spend on deciding, so that a run takes the time given.

Tokens and weights are kept near 20 to 1 (Hoffmann et al. 2022, arXiv 2203.15556), and data are gone through about four
times at most, up to which repeated data are nearly as good as new ones (Muennighoff et al. 2023, arXiv 2305.16264).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from opmix_ray.config import RunConfig, SearchConfig
from opmix_ray.decision.budget import decision_size
from opmix_ray.errors import UserError
from opmix_ray.init.inspect import BYTES_PER_TOKEN, Domain
from opmix_ray.runner.forecast import DECISION, SEGMENT, SEVERAL, START, Speed

TOKENS_PER_WEIGHT = 20
MAX_EPOCHS = 4
SHAPES = (  # hidden size and layers
    (64, 2), (96, 3), (128, 4), (192, 4), (256, 6), (384, 6), (512, 8), (640, 10), (768, 12), (1024, 16), (1536, 20),
)  # fmt: skip
FIRST = 2  # the shape that is measured first
COUNTING = 5.0  # seconds of a decision that counts words and trains no probe
MOST_WAITING = 0.5  # of the time given: a run that would wait longer for processes to start trains no probe
STEPS = 600  # aimed at
LONGEST = {"cpu": 2048, "cuda": 8192}  # tokens of a sequence, however long a conversation
REPORTED = 48  # held-out sequences per set in reports


@dataclass(frozen=True)
class Machine:
    """What one machine has."""

    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        """Where models are trained."""
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True)
class Sequences:
    """Length of a sequence, and the share of documents that is held out."""

    seq_len: int
    eval_fraction: float


@dataclass(frozen=True)
class Plan:
    """Everything about a run that depends on the time given.

    Args:
        weights: of the model without its embedding.
        tokens: trained on.
        available: training tokens there are.
        seconds: estimated, of the whole run.
        by: what ends the run, `time` or `data`.
        budget: `search.budget`; 0 where the time given is too short for probes.
    """

    model: dict[str, Any] | None
    weights: int
    tokens: int
    available: float
    seconds: float
    by: str
    batch_size: int
    steps: int
    decide_at: list[float]
    learning_rate: float
    budget: float


def choose_sequences(
    domains: Sequence[Domain], minutes: float, machine: Machine, longest: int | None
) -> Sequences:
    """A length and a split that leave every domain enough held-out sequences.

    Pairs and conversations, which are a sequence each, are not cut: nine of ten fit.

    Args:
        domains: what there is.
        minutes: given for the run.
        machine: where it runs.
        longest: positions the model has; None: any number.
    """
    lengths = [128, 64, 32] if minutes <= 15 else [256, 128, 64]
    if machine.gpus:
        lengths = [512, *lengths] if minutes <= 30 else [1024, 512, *lengths]
    if whole := max(domain.whole for domain in domains):
        least = min(2 ** math.ceil(math.log2(whole / BYTES_PER_TOKEN + 1)), LONGEST[machine.device])
        lengths = [length for length in lengths if length >= least] or [max(32, least)]
    lengths = [length for length in lengths if longest is None or length <= longest] or [longest or 32]
    for seq_len in lengths:
        for fraction in (0.02, 0.05, 0.1, 0.15, 0.2):
            if all(_enough(domain, fraction, seq_len, REPORTED + 16) for domain in domains):
                return Sequences(seq_len, fraction)
    for fraction in (0.1, 0.2, 0.3, 0.4, 0.5):
        if all(_enough(domain, fraction, lengths[-1], 4) for domain in domains):
            return Sequences(lengths[-1], fraction)
    return Sequences(lengths[-1], 0.5)


def can_be_split(domain: Domain) -> bool:
    """Whether some part of a domain can be held out: a sequence of the shortest kind on either side."""
    return any(_enough(domain, fraction, 32, 1) for fraction in (0.1, 0.2, 0.3, 0.4, 0.5))


def _enough(domain: Domain, fraction: float, seq_len: int, sequences: int) -> bool:
    per_token = 1.0 if domain.kind == "tokens" else BYTES_PER_TOKEN
    one = domain.size / max(1.0, domain.documents) if domain.whole else per_token * seq_len
    return min(domain.held_out(fraction, seq_len)) >= sequences * one


def shape(hidden: int, layers: int, seq_len: int) -> dict[str, Any]:
    """A Llama configuration for fresh weights."""
    heads = max(1, hidden // 64)
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": math.ceil(hidden * 8 / 3 / 32) * 32,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": True,
        "max_position_embeddings": seq_len,
    }


def size_of(hidden: int, layers: int) -> int:
    """Weights of a shape without its embedding."""
    return layers * (4 * hidden * hidden + 3 * hidden * math.ceil(hidden * 8 / 3 / 32) * 32)


def vocabulary(characters: float) -> int:
    """Entries of a tokenizer trained on so much text."""
    return next((size for size, most in ((2048, 3e6), (4096, 3e7), (8192, 3e8)) if characters < most), 16384)


def make_plan(
    minutes: float,
    domains: int,
    available: float,
    seq_len: int,
    machine: Machine,
    measure: Callable[[dict[str, Any] | None], Speed],
    *,
    vocab_size: int,
    fresh: bool,
) -> Plan:
    """Choose model, steps and the cost of decisions.

    Args:
        minutes: for the whole run.
        domains: how many.
        available: training tokens there are.
        seq_len: tokens in a sequence.
        machine: where it runs.
        measure: times a model configuration on it (the pretrained model for None).
        vocab_size: of the tokenizer.
        fresh: whether the model gets fresh weights of a size chosen here.

    Raises:
        UserError: the shortest run would read the data more often than is worth it.
    """
    decide_at = (
        [0.0, 0.33] if minutes < 20 else [0.0, 0.2, 0.5]
    )  # the first before any step: docs/decisions.md
    idle = START + SEGMENT * len(decide_at)
    probing = len(decide_at) * (DECISION + domains)
    budget = SearchConfig().budget if idle + probing <= MOST_WAITING * 60 * minutes else 0.0
    deciding = 1 + budget  # type: ignore[operator]
    seconds = max(0.2 * 60 * minutes, 60 * minutes - idle - probing) / deciding
    most = available * MAX_EPOCHS / 2  # so that every domain may still get twice its share
    if fresh:
        chosen = _choose_shape(seconds, most, measure, vocab_size, seq_len)
        model: dict[str, Any] | None = shape(*chosen, seq_len)
        rate = round(2e-3 * min(1.0, 128 / chosen[0]) ** 0.7, 5)
    else:
        model, rate = None, 5e-5
    speed = measure(model)
    workers = max(1, machine.gpus)
    per_second = speed.tokens_per_second * (workers if workers == 1 else SEVERAL * workers)
    tokens = min(seconds * per_second, most)
    batch = _power(tokens / seq_len / STEPS, 8 * workers, 256)
    if not budget or not _probed(
        domains, seq_len, batch, max(20, round(tokens / (batch * seq_len))), decide_at
    ):
        probing, deciding = len(decide_at) * COUNTING, 1.0
        tokens = min(max(0.2 * 60 * minutes, 60 * minutes - idle - probing) * per_second, most)
    steps = max(20, round(tokens / (batch * seq_len)))
    by = "data" if tokens >= most else "time"
    tokens = steps * batch * seq_len
    if tokens > available * MAX_EPOCHS:
        raise UserError(
            f"holds some {available:,.0f} tokens to train on, of which the shortest run would read {tokens:,}",
            key="--data",
            remedy=f"add text: about {tokens / available / MAX_EPOCHS:.2g} times as much",
        )
    return Plan(
        model=model,
        weights=speed.weights,
        tokens=tokens,
        available=available,
        seconds=idle + probing + deciding * tokens / per_second,
        by=by,
        batch_size=batch,
        steps=steps,
        decide_at=decide_at,
        learning_rate=rate,
        budget=budget,  # type: ignore[arg-type]
    )


def _probed(domains: int, seq_len: int, batch: int, steps: int, decide_at: list[float]) -> bool:
    """Whether `search.budget` pays for probes in such a run."""
    names = {f"d{number}": {"path": "-"} for number in range(domains)}
    stage = {"name": "s", "steps": steps, "decide_at": decide_at}
    config = RunConfig.model_validate(
        {"data": {"seq_len": seq_len, "domains": names}, "train": {"batch_size": batch}, "stages": [stage]}
    )
    return decision_size(config, config.stages[0], domains).probe is not None


def _choose_shape(
    seconds: float,
    most: float,
    measure: Callable[[dict[str, Any] | None], Speed],
    vocab_size: int,
    seq_len: int,
) -> tuple[int, int]:
    """The shape whose tokens in the time given come nearest to 20 a weight.

    One shape is measured; others are taken to train at the same number of operations a second.
    """
    speed = measure(shape(*SHAPES[FIRST], seq_len))
    rate = speed.tokens_per_second * _operations(*SHAPES[FIRST], vocab_size, seq_len)

    def distance(one: tuple[int, int]) -> float:
        tokens = min(most, seconds * rate / _operations(*one, vocab_size, seq_len))
        return abs(math.log(tokens / size_of(*one) / TOKENS_PER_WEIGHT))

    return min(SHAPES, key=distance)


def _operations(hidden: int, layers: int, vocab_size: int, seq_len: int) -> float:
    """Operations per token of a training step, over 6."""
    return size_of(hidden, layers) + hidden * vocab_size + 2 * layers * hidden * seq_len


def _power(value: float, least: int, most: int) -> int:
    """The power of two nearest below a value, within limits."""
    return int(min(most, max(least, 2 ** math.floor(math.log2(max(1.0, value))))))
