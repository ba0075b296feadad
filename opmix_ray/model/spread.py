"""One model over several devices, for processes that ask for several GPUs: blocks in a row, all else on the first.

    spread = Spread.over(model, ["cuda:0", "cuda:1"], costs)    # costs: bytes by parameter
    spread.device_of("model.layers.3.mlp.up_proj.weight")
    spread.connect(model)                  # hidden states now travel from device to device, and back to the first

`spread.places` is a `device_map` as accelerate and transformers have it. Embedding, last norm and head stay together on
the first device, where they may be one tensor and where token ids, targets and losses are; it gets fewer blocks for
that. Blocks compute one after the other: several devices hold more, they are not faster than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from opmix_ray.errors import UserError, first_line
from opmix_ray.model.architecture import without_values

Devices = torch.device | str | Sequence[torch.device | str]


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks of a decoder by name, in order: the longest `ModuleList` that is not part of another's."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    if not lists:
        return {}
    name = max(lists, key=lambda each: len(lists[each]))
    return {f"{name}.{number}": block for number, block in enumerate(lists[name])}


def visible_devices(gpus: float) -> list[torch.device]:
    """Where a process that was given so many GPUs computes; the CPU if it was given none or sees none."""
    if not gpus or not torch.cuda.is_available():
        return [torch.device("cpu")]
    return [torch.device("cuda", index) for index in range(max(1, int(gpus)))]


def share_out(first: int, costs: Sequence[int], count: int) -> list[int]:
    """Give blocks to devices, consecutive ones together, so that the fullest device has as little as possible.

    Args:
        first: what the first device holds besides.
        costs: of each block.
        count: of devices.

    Returns:
        The device of each block, from 0, never falling; where there are more devices than blocks, some stay empty.
    """
    low, high = max([first, *costs]), first + sum(costs)
    while low < high:
        limit = (low + high) // 2
        if _fill(first, costs, limit)[-1] < count:
            high = limit
        else:
            low = limit + 1
    return _fill(first, costs, low)


def _fill(first: int, costs: Sequence[int], limit: int) -> list[int]:
    """The device of each block when every device takes blocks up to a limit."""
    found, device, held = [], 0, first
    for cost in costs:
        if held + cost > limit:
            device, held = device + 1, 0
        held += cost
        found.append(device)
    return found


@dataclass(frozen=True)
class Spread:
    """Which device holds what.

    Attributes:
        places: block -> device; `""` for everything else.
    """

    places: dict[str, torch.device]

    @classmethod
    def over(cls, model: nn.Module, devices: Devices, costs: Mapping[str, int]) -> Spread:
        """Share a model out.

        Args:
            model: its parameters may be on the meta device.
            devices: one or more; the first is where results are.
            costs: bytes by parameter, with whatever else is to be on its device; those not named cost nothing.

        Raises:
            UserError: it has no blocks, or blocks that are to be on different devices share weights.
        """
        given = [devices] if isinstance(devices, str | torch.device) else devices
        there = [_indexed(torch.device(each)) for each in given]
        if len(there) == 1:
            return cls({"": there[0]})
        blocks = blocks_of(model)
        if not blocks:
            raise _cannot("has no row of blocks")
        sums = dict.fromkeys(["", *blocks], 0)
        for name, cost in costs.items():
            sums[_block(name, blocks)] += cost
        first = sums.pop("")
        numbers = share_out(first, list(sums.values()), len(there))
        found = cls({"": there[0], **{n: there[k] for n, k in zip(blocks, numbers, strict=True)}})
        _refuse_shared(model, found)
        return found

    @classmethod
    def planned(cls, model: nn.Module, gpus: float, costs: Mapping[str, int] | None = None) -> Spread:
        """As `over`, for so many GPUs that are not here.

        Args:
            model: see `over`.
            gpus: their number.
            costs: see `over`; none: the parameters' own bytes.

        Raises:
            UserError: see `over`.
        """
        if costs is None:
            costs = {name: parameter.nbytes for name, parameter in model.named_parameters()}
        return cls.over(model, [f"meta:{number}" for number in range(max(1, int(gpus)))], costs)

    @property
    def first(self) -> torch.device:
        """Where token ids come in and results come out."""
        return self.places[""]

    @property
    def devices(self) -> list[torch.device]:
        """Those that hold something, the first one first."""
        return list(dict.fromkeys(self.places.values()))

    def held(self, costs: Mapping[str, int]) -> dict[torch.device, int]:
        """Bytes on each device, for costs as `over` takes them."""
        found = dict.fromkeys(self.devices, 0)
        for name, cost in costs.items():
            found[self.device_of(name)] += cost
        return found

    def device_of(self, name: str) -> torch.device:
        """The device of a parameter, a buffer or a module, by its name."""
        return self.places[_block(name, self.places)]

    def connect(self, model: nn.Module) -> None:
        """Let what a block is given follow it to its device, and what the last gives come back to the first device.

        Buffers are moved to where they belong; parameters must be there.
        """
        for place, module in model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device_of(place))
        if len(self.places) == 1:
            return
        blocks = blocks_of(model)
        for name, block in blocks.items():
            block.register_forward_pre_hook(partial(_bring, self.places[name]), with_kwargs=True)
        list(blocks.values())[-1].register_forward_hook(partial(_take_back, self.first))


def check_spread(model: nn.Module, gpus: float) -> None:
    """Try a forward pass over so many GPUs on tensors without storage.

    Args:
        model: on the meta device; of no use afterwards.
        gpus: their number.

    Raises:
        UserError: the model cannot be spread, or its code brings together what is on different GPUs.
    """
    spread = Spread.planned(model, gpus)
    made: dict[int, torch.Tensor] = {}
    with FakeTensorMode(), without_values(), torch.no_grad():
        for place, module in model.named_modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        there = spread.device_of(place)
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=there)
                        held[name] = made.setdefault(id(tensor), fake)  # type: ignore[assignment]
        spread.connect(model)
        try:
            model(input_ids=torch.zeros((1, 8), dtype=torch.int64, device=spread.first), use_cache=False)
        except Exception as error:  # code that looks at values fails too, and says nothing about GPUs
            if "meta:" in str(error):
                raise _cannot(f"mixes what is on them: {first_line(error)}") from error


def _indexed(device: torch.device) -> torch.device:
    """A GPU with its number, as its tensors have it."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _block(name: str, blocks: Mapping[str, Any]) -> str:
    """The block that something belongs to; `""` for what is in none."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in blocks), "")


def _bring(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _moved(args, device), _moved(kwargs, device)


def _take_back(device: torch.device, module: nn.Module, args: Any, output: Any) -> Any:
    return _moved(output, device)


def _moved(value: Any, device: torch.device) -> Any:
    """The same with its tensors on a device, but for a cache of keys and values, whose layers stay where they are."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_moved(each, device) for each in value)
    if type(value) is list:
        return [_moved(each, device) for each in value]
    if type(value) is dict:
        return {key: _moved(each, device) for key, each in value.items()}
    return value


def _refuse_shared(model: nn.Module, spread: Spread) -> None:
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if spread.device_of(first) != spread.device_of(name):
            raise _cannot(f"shares {first} with {name}")


def _cannot(why: str) -> UserError:
    return UserError(
        f"the model cannot be spread over several GPUs: it {why}",
        key="search.gpus or probe.gpus",
        remedy="set 1, or 0 for CPUs",
    )
