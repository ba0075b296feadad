"""The one probe of a decision that is no component: trained on a mixture of all domains, measured, and let go.

Adding up the others' weights should do nearly what it does (`opmix_ray.decision.health`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.old_part import Chosen
from opmix_ray.decision.task import probe_task
from opmix_ray.mixture import Mixture
from opmix_ray.model.probe import Probe
from opmix_ray.record import read_record
from opmix_ray.storage import Storage
from opmix_ray.train.probes import ProbeTask

CHECK = "all domains"  # no component can have this name
FILE = "check.json"
_KEYS = ("name", "data", "tokens", "seconds", "flops", "losses", "measured")
_SHAPE: dict[str, Any] = {"factors": {}, "scale": 0.0, "rank": 0, "alpha": 0.0, "target_modules": []}


def check_task(
    config: RunConfig, prepared: Prepared, chosen: Chosen, stream: str, sequences: int | None
) -> ProbeTask:
    """A probe on the mixture nearest to the uniform one that the components span, which is a candidate too.

    Args:
        config: the run.
        prepared: its data.
        chosen: components.
        stream: names its order of the data.
        sequences: of each set that it is measured on, those that candidates see; None: `search.sequences`.
    """
    components = chosen.components(config.probe.new_share)
    domains = components.domains
    shares = components.ratios(components.weights_for(Mixture.uniform(domains)))
    return replace(
        probe_task(config, prepared, chosen.names[0], chosen.replayed, stream),
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
