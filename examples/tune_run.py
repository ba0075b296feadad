"""The search from a script, with `tune.run`: one decision about the model of a configuration.

    python examples/tune_run.py [CONFIG] [CANDIDATES]

Trains one LoRA probe per domain on the configured model, puts base and probes into the object store once, and
lets Ray Tune and Optuna search over mixtures. Each trial moves the shared model to `theta(w)` and measures it.
"""

import sys
from pathlib import Path

import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from opmix_ray import MixtureTrial, load_config, make_task, mixture_space

HERE = Path(__file__).resolve().parent


def main(config_file: str, candidates: int) -> None:
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    task = make_task(load_config(config_file))
    analysis = tune.run(
        tune.with_parameters(MixtureTrial, task=task),
        search_alg=OptunaSearch(
            space=mixture_space(task.components.names), metric="objective", mode="min", seed=0
        ),
        num_samples=candidates,
        resources_per_trial={"cpu": 1},
        reuse_actors=True,
        max_concurrent_trials=2,
        checkpoint_at_end=False,
        verbose=0,
    )
    best = analysis.get_best_trial("objective", "min")
    shares = dict(zip(task.components.domains, best.last_result["ratios"], strict=True))
    print(f"best of {len(analysis.trials)}: {best.last_result['objective']:.4f} nats per token with")
    for name, share in shares.items():
        print(f"  {name} {share:.3f}")


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else str(HERE / "quickstart.yaml"),
        int(sys.argv[2]) if len(sys.argv) > 2 else 20,
    )
