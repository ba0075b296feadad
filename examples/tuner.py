"""The search from a script, with `Tuner`: early stopping by ASHA, every candidate in a data frame.

python examples/tuner.py [CONFIG] [CANDIDATES]
"""

import sys
from dataclasses import replace
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from opmix_ray import MixtureTrial, load_config, make_task, mixture_space

HERE = Path(__file__).resolve().parent


def main(config_file: str, candidates: int) -> None:
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    task = replace(
        make_task(load_config(config_file)), chunks=4
    )  # report after each quarter of the sequences
    trainable = tune.with_resources(tune.with_parameters(MixtureTrial, task=task), {"cpu": 1})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(
                space=mixture_space(task.components.names), metric="objective", mode="min", seed=0
            ),
            metric="objective",
            mode="min",
            scheduler=ASHAScheduler(max_t=4, grace_period=1, reduction_factor=2),
            num_samples=candidates,
            max_concurrent_trials=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
        ),
    )
    results = tuner.fit()
    best = results.get_best_result(filter_nan_and_inf=True)
    shares = dict(zip(task.components.domains, best.metrics["ratios"], strict=True))
    seen = [result.metrics["sequences"] for result in results]
    stopped = sum(1 for count in seen if count < max(seen))
    print(f"best of {len(results)}: {best.metrics['objective']:.4f} nats per token; {stopped} stopped early")
    for name, share in shares.items():
        print(f"  {name} {share:.3f}")


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else str(HERE / "quickstart.yaml"),
        int(sys.argv[2]) if len(sys.argv) > 2 else 20,
    )
