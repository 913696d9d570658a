"""Finished studies of models that nobody ran: the answers of a simulated world, as a study logs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from study_world import World, design_of

from emo_mlflow.studying.across_models import PastStudy
from emo_mlflow.studying.procedure import run_tests
from emo_mlflow.studying.verdicts import answers, rung_table
from emo_mlflow.types import digest


def past_study(model: str, effects: Mapping[str, float], seed: int = 0, n: int = 12, spread: float = 0.4, **design: object) -> PastStudy:
    """A study whose emotions have these effects on the logit scale; 0 makes a direction a random one."""
    plan = design_of(n, emotions=tuple(effects), **design)
    world = World(seed, n, effects, spread)
    tests = run_tests(plan, world, lambda control, own: False, lambda tests: None)
    found = answers(plan, world, tests)
    damage = pd.DataFrame({"emotion": list(effects), "kl": 0.3, "perplexity_ratio": 1.4, "log_probability_change": -0.1})
    facts = {"scorer_fingerprints": {"embedded": "abc"}, "model_fingerprint": digest(model)}
    design_json = json.loads(json.dumps(plan.as_json()))
    verdicts = rung_table(plan, world, tests, found)
    return PastStudy(digest([model, seed], 32), model, design_json, {"model": f"/models/{model}"}, facts, verdicts, damage)


def log_past_study(client: MlflowClient, experiment: str, study: PastStudy, folder: Path, status: str = "FINISHED", **tags: str) -> str:
    """Logs it as `tracking` does; returns the run's id."""
    run_id = str(client.create_run(experiment, tags={"emo.kind": "study", "emo.model": study.model, **tags}).info.run_id)
    folder = folder / run_id
    folder.mkdir(parents=True)
    (folder / "design.json").write_text(json.dumps(study.design))
    (folder / "config.json").write_text(json.dumps({"config": dict(study.config), **study.facts}, default=str))
    study.verdicts.replace({np.inf: np.nan}).to_parquet(folder / "verdicts.parquet", index=False)
    study.damage.to_parquet(folder / "damage.parquet", index=False)
    client.log_artifacts(run_id, str(folder))
    client.set_terminated(run_id, status)
    return run_id
