"""The probes of a decision: found where a crash left them, or trained.

decisions/000/probes/<name>/           finished probes, as PEFT directories
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from opmix_ray.cluster.demand import of_probe
from opmix_ray.cluster.waiting import waiting
from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.check_probe import CHECK, check_task, read_check, write_check
from opmix_ray.decision.old_part import Chosen
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.task import probe_task
from opmix_ray.model.probe import RECORD, Probe, load_probe, save_probe
from opmix_ray.storage import Storage
from opmix_ray.train.probes import LostProbe, ProbeTask, train_probes


@dataclass
class Trained:
    """What a decision has to go on.

    Args:
        probes: in the order asked for, without the lost ones.
        check: the probe on all domains.
        lost: probes that failed for good, and why.
    """

    probes: list[Probe] = field(default_factory=list)
    check: Probe | None = None
    lost: dict[str, str] = field(default_factory=dict)

    def costs(self) -> list[Probe]:
        """Everything that took tokens, operations and seconds."""
        return [*self.probes, *([self.check] if self.check else [])]


class Probing:
    """Trains or finds the probes of one decision.

    Args:
        config: the run.
        prepared: its data.
        place: the decision's directory.
        progress: what a person sees.
        chosen: components.
        index: of the decision.
        sequences: of each set that candidates see; None: `search.sequences`.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        place: Storage,
        progress: Progress,
        *,
        chosen: Chosen,
        index: int,
        sequences: int | None = None,
    ) -> None:
        self.config, self.prepared, self.place, self.progress = config, prepared, place, progress
        self.chosen, self.names, self.stream = chosen, chosen.names, f"decision-{index}"
        self.sequences = sequences

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
                missing.append(
                    probe_task(self.config, self.prepared, name, self.chosen.replayed, self.stream)
                )
        if trained.check is not None:
            self.progress.probe_done(trained.check)
        elif self.config.probe.check:
            missing.append(check_task(self.config, self.prepared, self.chosen, self.stream, self.sequences))
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
        trained.probes = [found[name] for name in self.names if name in found]
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
            yield from train_probes(tasks, base, self.progress.probe_started)


def _upload(place: Storage, name: str, save: Callable[[str], None]) -> None:
    """Write a directory that counts once its record is there."""
    with tempfile.TemporaryDirectory() as directory:
        save(directory)
        place.upload(directory, name, last=RECORD)
