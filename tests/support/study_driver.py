"""A driver of a study, for tests that kill it: python study_driver.py OUT DATA TRIALS [TRACKING_URI].

Run again, it resumes. With RAY_ADDRESS it joins that cluster.
"""

from __future__ import annotations

import sys
from pathlib import Path

from siclip_platform.cluster.connect import Needs, ray_cluster

# Above 0.9 the fake training crashes or diverges.
SPACE = """\
name: s
metric: validation/mean_recall@1
parameters:
  training.weight_decay: {distribution: uniform, low: 0, high: 0.9}
  training.learning_rate: {distribution: log_uniform, low: 1.0e-4, high: 1.0e-2}
"""


def main(out: Path, data: Path, trials: int, tracking_uri: str | None = None) -> int:
    with ray_cluster(Needs(concurrent=1, worker_cpus=1.0)):
        from siclip_platform.metrics import METRICS
        from siclip_platform.search.ledger.recorder import Recorder
        from siclip_platform.search.policy.searcher import make_searcher
        from siclip_platform.search.tune_run import run_study
        from siclip_platform.spaces.parsing import parse_space
        from siclip_platform.tracking import Tracker, default_tracking_uri
        from tests.support import study_parts as parts

        folder = out / "s"
        tracker = Tracker(tracking_uri or default_tracking_uri(out), artifacts=out / "artifacts", spool=folder)
        study = tracker.start("s", "study", params={}, tags={"study": "s"}, key="s", reopen=True)
        space = parse_space(SPACE, "s.yaml", METRICS, None)
        searcher = make_searcher(
            space,
            seed=5,
            num_trials=trials,
            max_steps=parts.STEPS,
            study_name="s",
            storage=folder / "optuna.db",
        )
        base = parts.base_recipe(data, checkpoint_every=2)
        plan = parts.plan(folder, data, [], base=base, searcher=searcher, scheduler=parts.asha(), trials=trials)
        result = run_study(plan, Recorder(tracker, study, {"study": "s"}))
        study.finish("interrupted" if result.interrupted else "completed")
        tracker.close()
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
