"""The configuration of a run: its keys with their defaults, and how it is read from a file.

config = load_config("examples/quickstart.yaml", overrides=["train.batch_size=8"])
"""

from __future__ import annotations

from opmix_ray.config.data import (
    BaseConfig,
    DataConfig,
    DomainConfig,
    EvaluationConfig,
    EvaluationSetConfig,
    HarnessConfig,
    SourceConfig,
)
from opmix_ray.config.load import (
    dump_config,
    load_config,
    load_partly,
    make_config,
    with_given,
    without_secrets,
)
from opmix_ray.config.run import (
    ClusterConfig,
    ProbeConfig,
    ProposalConfig,
    RunConfig,
    SearchConfig,
    StageConfig,
    WatchConfig,
)
from opmix_ray.config.section import Section, parse_config
from opmix_ray.config.train import (
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from opmix_ray.paths import is_uri
from opmix_ray.yaml_file import read_yaml

__all__ = [
    "BaseConfig",
    "ClusterConfig",
    "DataConfig",
    "DomainConfig",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "HarnessConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "ProposalConfig",
    "RunConfig",
    "ScheduleConfig",
    "SearchConfig",
    "Section",
    "SourceConfig",
    "StageConfig",
    "TokenizerConfig",
    "TrainConfig",
    "WatchConfig",
    "dump_config",
    "is_uri",
    "load_config",
    "load_partly",
    "make_config",
    "parse_config",
    "read_yaml",
    "with_given",
    "without_secrets",
]
