"""The probes of a decision: found where a crash left them, or trained, all to the same length.

With `probe.settle` they are trained in parts of `probe.settle_every` steps. After each part fixed candidates are scored
by adding the probes up, and once their ranking has come to rest all probes stop. What a part leaves is kept until
the probes are done, so a run that was cut off repeats at most the part that each probe was at.

    decisions/000/probes/<name>/           finished probes, as PEFT directories
    decisions/000/lengths.json             rankings so far, and the length that was chosen
    decisions/000/lengths/<steps>/<name>/  probes between two parts
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from opmix_ray.cluster.demand import of_probe
from opmix_ray.cluster.waiting import waiting
from opmix_ray.config import RunConfig
from opmix_ray.data.held_out import HeldOut, part_of, search_sets, texts_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.check_probe import CHECK, check_task, read_check, write_check
from opmix_ray.decision.probe_ranking import Look, agreement, fixed_candidates, look
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.task import probe_task
from opmix_ray.mixture import Mixture
from opmix_ray.model.probe import RECORD, Probe, load_probe, save_probe
from opmix_ray.record import read_record
from opmix_ray.storage import Storage
from opmix_ray.train.probe_run import Paused, load_paused, save_paused
from opmix_ray.train.probes import LostProbe, ProbeTask, train_parts, train_probes
from opmix_ray.train.side_by_side import Failed, Job, side_by_side

_LEAST = 2  # probes between which there is something to rank
SEQUENCES = 4  # of each set; rankings are compared on the same ones


@dataclass
class Trained:
    """What a decision has to go on.

    Args:
        probes: in the order asked for, without the lost ones.
        check: the probe on all domains.
        lost: probes that failed for good, and why.
        looks: rankings on the way; empty where the length was fixed.
        steps: of every probe.
    """

    probes: list[Probe] = field(default_factory=list)
    check: Probe | None = None
    lost: dict[str, str] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    steps: int = 0

    def costs(self) -> list[Probe | Look]:
        """Everything that took tokens, operations and seconds."""
        return [*self.probes, *([self.check] if self.check else []), *self.looks]

    def length(self, config: RunConfig) -> dict[str, Any]:
        """What decision.json says of the length."""
        return {
            "steps": self.steps,
            "most": config.probe.steps,
            "settle": config.probe.settle,
            "agreement": {
                str(now.steps): agreement(before, now)
                for before, now in zip(self.looks, self.looks[1:], strict=False)
            },
        }


class Probing:
    """Trains or finds the probes of one decision.

    Args:
        config: the run.
        prepared: its data.
        place: the decision's directory.
        progress: what a person sees.
        names: components.
        replayed: old mixture in the components' data, over every domain.
        index: of the decision.
        seed: of the decision.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        place: Storage,
        progress: Progress,
        *,
        names: Sequence[str],
        replayed: Mixture,
        index: int,
        seed: int,
    ) -> None:
        self.config, self.prepared, self.place, self.progress = config, prepared, place, progress
        self.names, self.replayed, self.stream = names, replayed, f"decision-{index}"
        self._seed = seed
        self._log = LengthLog(place)

    def train(self, base: Any) -> Trained:
        """All probes.

        Args:
            base: object reference of the main run's weights.
        """
        trained = Trained(check=read_check(self.place))
        found: dict[str, Probe] = {}
        missing = []
        for name in self.names:
            if self.place.exists(f"probes/{name}/{RECORD}"):
                with self.place.local(f"probes/{name}") as directory:
                    found[name] = replace(load_probe(directory), name=name)
                self.progress.probe_done(found[name])
            else:
                missing.append(probe_task(self.config, self.prepared, name, self.replayed, self.stream))
        if trained.check is not None:
            self.progress.probe_done(trained.check)
        elif self.config.probe.check:
            missing.append(check_task(self.config, self.prepared, self.names, self.replayed, self.stream))
        for probe in self._trained(missing, base):
            if isinstance(probe, LostProbe):
                self._note(probe, trained.lost)
                continue
            if probe.name == CHECK:
                trained.check = write_check(self.place, probe)
            else:
                _upload(self.place, f"probes/{probe.name}", partial(save_probe, probe))
                found[probe.name] = probe
            self.progress.probe_done(probe)
        self._log.clear()
        trained.probes = [found[name] for name in self.names if name in found]
        trained.looks, trained.steps = self._log.looks, self._log.chosen or self.config.probe.steps
        return trained

    def _note(self, probe: LostProbe, lost: dict[str, str]) -> None:
        if probe.name == CHECK:
            self.progress.message(f"the probe of the check failed for good: {probe.reason}")
            return
        lost[probe.name] = probe.reason
        self.progress.message(f"probe {probe.name} failed for good and is left out: {probe.reason}")

    def _trained(self, tasks: list[ProbeTask], base: Any) -> Iterator[Probe | LostProbe]:
        """Probes as they are done."""
        if not tasks:
            return
        with waiting(of_probe(self.config), self.progress.message):
            paused = self._log.load([task.name for task in tasks])
            sets = self._sets()
            if sets and self._log.chosen is None:
                for probe in self._settled(tasks, base, paused, sets):
                    yield probe
                    tasks = [task for task in tasks if task.name != probe.name]
            steps = self._log.chosen or self.config.probe.steps
            there = [t.name for t in tasks if t.measure is None and _is_at(steps, paused.get(t.name))]
            yield from (paused[name].probe for name in there)
            tasks = [task for task in tasks if task.name not in there]
            yield from train_probes(tasks, base, self.progress.probe_started, paused, steps)

    def _settled(
        self, tasks: Sequence[ProbeTask], base: Any, paused: dict[str, Paused], sets: HeldOut
    ) -> Iterator[LostProbe]:
        """Train in parts until the ranking has come to rest or the last part is left; gives those that are lost."""
        settings = self.config.probe
        first = self._log.looks[-1].steps if self._log.looks else 0
        for steps in range(first + settings.settle_every, settings.steps, settings.settle_every):
            behind = [t for t in tasks if t.name not in paused or paused[t.name].steps < steps]
            for result in train_parts(behind, base, self.progress.probe_started, paused, steps):
                if isinstance(result, LostProbe):
                    tasks = [task for task in tasks if task.name != result.name]
                    paused.pop(result.name, None)
                    yield result
                else:
                    paused[result.probe.name] = result
                    self._log.keep(result)
            if not self._look(base, [paused[n].probe for n in self.names if n in paused], sets):
                return

    def _look(self, base: Any, probes: Sequence[Probe], sets: HeldOut) -> bool:
        """Rank the candidates; whether to train on in parts."""
        settings = self.config.probe
        if len(probes) < _LEAST:
            return False
        kept = np.isin(self.names, [probe.name for probe in probes])
        weights = fixed_candidates(len(self.names), self._seed)[:, kept]
        search, autocast = self.config.search, self.config.model.autocast
        arguments = (
            base, probes, weights / weights.sum(axis=1, keepdims=True), sets, self.config.objective(),
            search.batch_size, autocast,
        )  # fmt: skip
        [(_, found)] = side_by_side(look, [Job("ranking", arguments, settings)], "probe", None)
        if isinstance(found, Failed):
            self.progress.message(f"probes take all {settings.steps} steps: no ranking ({found.cause})")
            return False
        before = self._log.looks[-1] if self._log.looks else None
        same = None if before is None else agreement(before, found)
        settled = same is not None and settings.settle is not None and same >= settings.settle
        self._log.add(found, chosen=found.steps if settled else None)
        if same is not None and before is not None:
            self.progress.message(
                f"probes of {found.steps} steps rank candidates like those of {before.steps} steps: {same:.2f}"
            )
        return not settled

    def _sets(self) -> HeldOut:
        """A few sequences of every set of text in the objective; nothing where the length is fixed."""
        if self.config.probe.settle is None:
            return {}
        objective = self.config.objective()
        sets = search_sets(self.prepared, self.config.evaluation.sequences, self.config.search.sequences)
        return {
            name: part_of(held, slice(0, SEQUENCES))
            for name, held in texts_of(sets).items()
            if objective[name] > 0
        }


@dataclass
class Lengths:
    """Content of lengths.json: the rankings so far, and the steps that the last one chose."""

    looks: list[Look] = field(default_factory=list)
    steps: int | None = None


class LengthLog:
    """What is kept of probes that are trained in parts, in the decision's directory."""

    def __init__(self, place: Storage) -> None:
        self._place = place
        kept = read_record(place, "lengths.json", Lengths) if place.exists("lengths.json") else Lengths()
        self.looks, self.chosen = kept.looks, kept.steps

    def add(self, found: Look, chosen: int | None) -> None:
        """Note a ranking, and that it is the last one; what came before it is not needed any more."""
        self.looks.append(found)
        self.chosen = chosen
        entries = [entry.to_dict() for entry in self.looks]
        self._place.write_json("lengths.json", {"looks": entries, "steps": chosen})
        for name in self._place.names("lengths"):
            if int(name) < found.steps:
                self._place.delete(f"lengths/{name}")

    def keep(self, paused: Paused) -> None:
        """Keep a probe between two parts."""
        _upload(self._place, f"lengths/{paused.steps}/{paused.probe.name}", partial(save_paused, paused))

    def load(self, names: Sequence[str]) -> dict[str, Paused]:
        """The probes that were kept, each as far as it came."""
        found = {}
        for steps in sorted(map(int, self._place.names("lengths"))):
            for name in names:
                if self._place.exists(f"lengths/{steps}/{name}/{RECORD}"):
                    with self._place.local(f"lengths/{steps}/{name}") as directory:
                        found[name] = load_paused(directory)
        return found

    def clear(self) -> None:
        """Forget the probes between two parts; the rankings stay."""
        self._place.delete("lengths")


def _is_at(steps: int, paused: Paused | None) -> bool:
    return paused is not None and paused.steps == steps


def _upload(place: Storage, name: str, save: Callable[[str], None]) -> None:
    """Write a directory that counts once its record is there."""
    with tempfile.TemporaryDirectory() as directory:
        save(directory)
        place.upload(directory, name, last=RECORD)
