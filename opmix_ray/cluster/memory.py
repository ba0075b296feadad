"""Memory that a run needs, planned from its configuration alone: per worker, probe, evaluator, machine and driver.

    plan = plan_memory(config)
    plan["worker"]["peak"]        # bytes

With P parameters of b bytes each (4 in float32, 2 in bfloat16):

- Weights take P b, gradients P b, AdamW's two moments 2 P b (Kingma and Ba 2015); DDP's buckets hold the gradients once
  more. Divided over N workers by FSDP2, these are P b / N each (stage 3 of ZeRO, Rajbhandari et al. 2020, section 5),
  and beside them there are, whole, two blocks (one computes, the next is on its way) and what is in no block.
- A probe's rank r adds r (in + out) parameters per layer in float32, 16 bytes each with gradient and moments
  (Hu et al. 2021); the frozen weights are shared by all processes of a machine, or copied to a GPU.
- An evaluator owns one copy of the adapted layers' weights, in bfloat16 where autocast would cast them; base and
  factors are shared, or copied to a GPU.
- Over several GPUs blocks are spread (`opmix_ray.model.spread`): `fullest` is the most that one of them holds. A
  probe's activations are spread too, but counted whole.
- On the CPU glibc keeps some of what passes have freed: its trim threshold, where that is less than half of what they
  need, else three eighths in holes (a rule that fits what was measured; what lives at a time is met within 4 %).
- What passes leave in memory is counted, not estimated (`opmix_ray.model.peak`). While the backward pass goes on,
  gradients come and activations go, so the peak is at its beginning or at its end.

`benchmarks/memory.py` compares these numbers with processes that do the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from opmix_ray.config import RunConfig
from opmix_ray.config.run import with_slopes
from opmix_ray.data.tokenizer import load_tokenizer, vocabulary_size
from opmix_ray.model.architecture import architecture
from opmix_ray.model.loss import has_bfloat16
from opmix_ray.model.peak import StepMemory, count_forward, count_step
from opmix_ray.model.spread import Spread, blocks_of
from opmix_ray.model.targets import Target, adapted_layers, target

PROCESS = 700 << 20  # of a process with Python, torch, transformers and Ray, before it does anything
_FLOAT, _HALF = 4, 2
_KEPT = 64 << 20  # glibc's greatest trim threshold: twice DEFAULT_MMAP_THRESHOLD_MAX, see mallopt(3)
_IDS_AND_MASK = 9  # bytes of a held-out token: int64 and bool


def plan_memory(config: RunConfig) -> dict[str, Any]:
    """Bytes by part and purpose.

    Args:
        config: a run without errors; its tokenizer is loaded, its weights and data are not.

    Returns:
        `parameters` (a number), and by purpose: `worker` of the main run, `probe` and `evaluator` (what each process
        has beside what it shares), `driver`, and `machine` (what its processes share, in the object store). `peak` is
        the most at a time, on the fullest GPU where the part has some; `host` is then what it takes of the machine's
        memory, and `saving` what rank 0 takes of it for a checkpoint, both beside the peak.

    Raises:
        UserError: the tokenizer or the model's description cannot be read.
    """
    return _Plan(config).tree()


def vocabulary(config: RunConfig) -> tuple[int, int]:
    """Size of the tokenizer's vocabulary and its end-of-text id; of one that is still to be trained, as configured.

    Raises:
        UserError: the tokenizer cannot be read.
    """
    if config.tokenizer.train_vocab_size is not None:
        return config.tokenizer.train_vocab_size, 0
    tokenizer = load_tokenizer(config)
    return vocabulary_size(tokenizer), tokenizer.eos_token_id


class _Plan:
    def __init__(self, config: RunConfig) -> None:
        self.config = config
        vocab_size, eos = vocabulary(config)
        self.model = architecture(config.model, vocab_size=vocab_size, eos_token_id=eos)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.weights = _bytes(self.model)
        self.decides = any(stage.decide_at for stage in config.stages)

    def tree(self) -> dict[str, Any]:
        plan: dict[str, Any] = {"parameters": self.parameters, "worker": self.worker()}
        if self.decides:
            names = adapted_layers(self.model, self.config.probe.target_modules)
            self.layers = [target(self.model, name) for name in names]
            self.adapter = self.config.probe.rank * sum(layer.width for layer in self.layers)
            plan |= {"probe": self.probe(), "evaluator": self.evaluator()}
        return plan | {"machine": self.machine(), "driver": self.driver()}

    def worker(self) -> dict[str, int]:
        train, sharded = (
            self.config.train,
            self.config.train.strategy == "fsdp2" and self.config.train.workers > 1,
        )
        share = -(-train.batch_size // train.workers)
        micro = min(train.micro_batch_size or share, share)
        step = self._step(micro, train.gpus_per_worker, fused=not train.gpus_per_worker and not sharded)
        parts = train.workers if sharded else 1
        weights = gradients = self.weights // parts
        moments = 2 * self.weights // parts
        exchange = self.weights if train.workers > 1 and not sharded else 0
        if sharded:
            exchange = _whole_under_fsdp2(self.model)
        update = self.weights // parts if train.gpus_per_worker else 2 * _largest(self.model) // parts
        kept = gradients if micro < share else 0
        second = self._second()
        # Sharded, a block's gradient is divided as soon as it is there, so activations and gradients are never both.
        passes = max((step.saved + step.head if sharded else step.peak) + kept, gradients + update)
        found = {
            "weights": weights,
            "gradients": gradients,
            "optimizer": moments,
            "exchange": exchange,
            "activations": step.saved,
            "logits": step.head,
        }
        if sharded:  # rank 0 gathers weights and moments on its machine for a checkpoint
            found["saving"] = 3 * self.weights
        found |= second
        # Loaded whole on the machine before it is moved or divided.
        return _closed(
            found,
            weights + moments + exchange + sum(second.values()),
            passes,
            train.gpus_per_worker,
            PROCESS + self.weights,
        )

    def _second(self) -> dict[str, int]:
        """Bytes of the weights that a strategy holds beside the model's: a teacher's, or a stage's first ones."""
        strategy = self.config.strategy
        if strategy == "self-distillation" and self.config.strategies.self_distillation.teacher_rate < 1:
            return {"teacher": self.weights}
        return {"first weights": self.weights} if strategy == "merging" else {}

    def probe(self) -> dict[str, int]:
        config = self.config
        batch = config.probe.batch_size or config.train.batch_size
        micro = min(config.train.micro_batch_size or batch, batch)
        step = self._step(micro, config.probe.gpus, fused=not config.probe.gpus, probe=True)
        weights = self.weights if config.probe.gpus else 0
        adapter = _FLOAT * self.adapter
        found = {
            "weights": weights,
            "adapter": adapter,
            "gradients": adapter,
            "optimizer": 2 * adapter,
            "activations": step.saved,
            "logits": step.head,
        }
        kept = adapter if micro < batch else 0
        stays = weights + 3 * adapter + kept
        if config.probe.gpus > 1:
            rank, times = config.probe.rank, 4 if kept else 3
            found["fullest"] = stays = self._fullest(
                config.probe.gpus, lambda layer: times * _FLOAT * rank * layer.width
            )
        return _closed(found, stays, step.peak, config.probe.gpus, PROCESS)

    def evaluator(self) -> dict[str, int]:
        config, search = self.config, self.config.search
        sequences = min(config.evaluation.batch_size, search.sequences)
        slopes = with_slopes(config, self._components(), config.search.trials)
        if slopes:  # activations are kept, weights' gradients let go one by one
            step = self._step(sequences, search.gpus, fused=False)
        else:
            step = count_forward(
                self.model,
                sequences=sequences,
                seq_len=config.data.seq_len,
                autocast=self._casts(search.gpus),
                on_cpu=not search.gpus,
            )
        width = min(self._width(), _HALF) if self._casts(search.gpus) else self._width()
        own = sum(_numel(layer) * width for layer in self.layers)
        rounding = _FLOAT * max(map(_numel, self.layers)) if width < _FLOAT else 0
        # Left and right factor of the largest layer, side by side, when the model is moved.
        moving = _FLOAT * max(layer.width * config.probe.rank * self._components() for layer in self.layers)
        shared = self.weights + self._factors() if search.gpus else 0
        found = {"shared": shared, "weights": own, "activations": step.saved, "logits": step.head}
        most = step.saved + step.head + _FLOAT * max(map(_numel, self.layers)) if slopes else step.peak
        stays = shared + own
        if search.gpus > 1:
            rank = config.probe.rank * self._components()
            found["fullest"] = stays = self._fullest(
                search.gpus,
                lambda layer: _numel(layer) * width + _FLOAT * rank * layer.width,
            )
        return _closed(found, stays + rounding, max(most, moving), search.gpus, PROCESS)

    def machine(self) -> dict[str, int]:
        if not self.decides:
            return {"base": 0, "factors": 0, "held_out": 0, "peak": 0}
        sequences = len(self.config.decided_on()) * self.config.search.sequences
        held_out = sequences * self.config.data.seq_len * _IDS_AND_MASK
        # Every probe's factors come as its task's result, and once more as one object for the evaluators.
        factors = 2 * self._factors()
        return {
            "base": self.weights,
            "factors": factors,
            "held_out": held_out,
            "peak": self.weights + factors + held_out,
        }

    def driver(self) -> dict[str, int]:
        weights = self.weights if self.decides else 0
        factors = self._factors() if self.decides else 0
        return {"weights": weights, "factors": factors, "peak": PROCESS + weights + factors}

    def _casts(self, gpus: float) -> bool:
        """Whether passes compute in bfloat16: GPUs are taken to have it, other machines' CPUs to be like this one's."""
        return self.config.model.autocast and (bool(gpus) or has_bfloat16("cpu"))

    def _step(self, sequences: int, gpus: float, *, fused: bool, probe: bool = False) -> StepMemory:
        return count_step(
            self.model,
            sequences=sequences,
            seq_len=self.config.data.seq_len,
            autocast=self._casts(gpus),
            fused=fused,
            recompute=self.config.model.recompute,
            probe=self.config.probe if probe else None,
        )

    def _components(self) -> int:
        """Probes of the decision that has the most: one per domain, or one more for the old mixture."""
        return len(self.config.data.domains)

    def _factors(self) -> int:
        return _FLOAT * self.adapter * self._components()

    def _fullest(self, gpus: float, beside: Callable[[Target], int]) -> int:
        """Bytes on the fullest of several GPUs: weights, and what there is beside those of each adapted layer."""
        costs = {name: parameter.nbytes for name, parameter in self.model.named_parameters()}
        for layer in self.layers:
            costs[layer.parameter] += beside(layer)
        return max(Spread.planned(self.model, gpus, costs).held(costs).values())

    def _width(self) -> int:
        return next(self.model.parameters()).element_size()


def _closed(parts: dict[str, int], stays: int, passes: int, gpus: float, host: int) -> dict[str, int]:
    """The parts with their peak: on the GPU, and then with what the machine holds; else with what malloc keeps."""
    if gpus:
        return {**parts, "peak": stays + passes, "host": host}
    heap = max(3 * passes // 8, min(_KEPT, passes // 2))
    return {**parts, "heap": heap, "peak": stays + passes + heap}


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _numel(layer: Target) -> int:
    return int(layer.weight.numel())


def _largest(model: PreTrainedModel) -> int:
    return max(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _whole_under_fsdp2(model: PreTrainedModel) -> int:
    """Bytes that are whole at a time where the rest is divided: two blocks, what is in none, and a block's gradient."""
    blocks = blocks_of(model).values()
    largest = max(_bytes(block) for block in blocks)
    outside = _bytes(model) - sum(_bytes(block) for block in blocks)
    return 3 * largest + 2 * outside
