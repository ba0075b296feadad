"""The probes of a decision: found where a crash left them, or trained.

decisions/000/probes/<name>/           finished probes, as PEFT directories

One of them is no component: it is trained on a mixture of all domains, measured, and let go. Adding up the others'
weights should do nearly what it does (`opmix_ray.decision.health`).

A domain whose probe failed for good keeps its share, and the decision is about the others: what the other probes saw
is read as if they had seen that domain with the share it has. All candidates lack the same thing, so they are still
compared fairly.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from opmix_ray.cluster.demand import of_probe, waiting
from opmix_ray.config import ProbeConfig, RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.old_part import Chosen
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.decision.task import probe_task
from opmix_ray.mixture import Mixture
from opmix_ray.model.probe import RECORD, Probe, load_probe, save_probe
from opmix_ray.storage import Storage, fault, is_sealed, read_record, seal
from opmix_ray.train.probes import LostProbe, ProbeTask, train_probes
from opmix_ray.trials.space import OLD

CHECK = "all domains"  # no component can have this name
FILE = "check.json"
_KEYS = ("name", "data", "tokens", "seconds", "flops", "losses", "measured")
_SHAPE: dict[str, Any] = {"factors": {}, "scale": 0.0, "rank": 0, "alpha": 0.0, "target_modules": []}


def check_task(
    config: RunConfig,
    prepared: Prepared,
    chosen: Chosen,
    stream: str,
    sequences: int | None,
    probe: ProbeConfig,
) -> ProbeTask:
    """A probe on the mixture nearest to the uniform one that the components span, which is a candidate too.

    Args:
        config: the run.
        prepared: its data.
        chosen: components.
        stream: names its order of the data.
        sequences: of each set that it is measured on, those that candidates see; None: `search.sequences`.
        probe: its settings.
    """
    components = chosen.components(config.probe.new_share)
    domains = components.domains
    shares = components.ratios(components.weights_for(Mixture.uniform(domains)))
    return replace(
        probe_task(config, prepared, chosen.names[0], chosen.replayed, stream, probe),
        name=CHECK,
        data=dict(zip(domains, shares.tolist(), strict=True)),
        measure=(config.evaluation.sequences, config.search.sequences, tuple(config.decided_on()), sequences),
    )


def write_check(place: Storage, probe: Probe) -> Probe:
    """Keep what it measured and cost, not its weights."""
    place.write_json(FILE, {key: getattr(probe, key) for key in _KEYS})
    return replace(probe, factors={})


def read_check(place: Storage) -> Probe | None:
    """What `write_check` wrote."""
    return Probe(**read_record(place, FILE, dict[str, Any]), **_SHAPE) if place.exists(FILE) else None


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
        probe: settings; None: the run's.
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
        probe: ProbeConfig | None = None,
    ) -> None:
        self.config, self.prepared, self.place, self.progress = config, prepared, place, progress
        self.chosen, self.names, self.stream = chosen, chosen.names, f"decision-{index}"
        self.sequences, self.probe = sequences, probe or config.probe

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
                    why = fault(directory) if is_sealed(directory) else None
                    if why is None:
                        found[name] = replace(load_probe(directory), name=name)
                if why is not None:
                    self.progress.message(f"probe {name} {why} and is trained again")
            if name in found:
                self.progress.probe_done(found[name])
            else:
                missing.append(
                    probe_task(
                        self.config, self.prepared, name, self.chosen.replayed, self.stream, self.probe
                    )
                )
        if trained.check is not None:
            self.progress.probe_done(trained.check)
        elif self.config.probe.check:
            missing.append(
                check_task(self.config, self.prepared, self.chosen, self.stream, self.sequences, self.probe)
            )
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
        seal(directory)
        place.upload(directory, name, last=RECORD)


_LEAST = 2  # probes between which there is something to decide


def can_do_without(lost: Mapping[str, str], names: Sequence[str], current: Mixture) -> bool:
    """Whether there is something to decide between the probes that are left.

    Args:
        lost: name of each probe that failed for good -> why.
        names: of all probes.
        current: mixture in force.
    """
    if not lost:
        return True
    left = [name for name in names if name not in lost]
    share = sum(current.get(name, 0.0) for name in lost)
    return OLD not in lost and len(left) >= _LEAST and share < 1 - 1e-9


def holding(probe: Probe, held: Mapping[str, float]) -> Probe:
    """A probe whose data are read with given shares of the domains that nothing is known about.

    Args:
        probe: of another domain.
        held: domain -> share; their sum is below 1.
    """
    seen = sum(share for name, share in probe.data.items() if name not in held)
    scale = (1 - sum(held.values())) / seen
    data = {name: share * scale for name, share in probe.data.items() if name not in held}
    return replace(probe, data={**data, **held})


def undecided(
    lost: Mapping[str, str], current: Mixture, *, index: int, step: int, stage: str, details: dict[str, Any]
) -> Decision:
    """The decision to keep the mixture in force where too few probes are left.

    Args:
        lost: name of each probe that failed for good -> why.
        current: mixture in force.
        index, step, stage: of the decision.
        details: what decision.json says besides.
    """
    names = ", ".join(lost)
    return Decision(
        index=index,
        step=step,
        stage=stage,
        kept="old",
        reason=f"too few probes are left to decide between; these failed: {names}",
        trials=0,
        usable=0,
        current=current.shares,
        proposal=current.shares,
        mixture=current.shares,
        details={"lost": dict(lost), **details},
    )
