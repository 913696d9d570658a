"""Sweeps made of random numbers with planted effects, in the tables that real ones have; no model, no scorer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import pandas as pd
import pyarrow as pa

from emo_mlflow.comparison import Source
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.statistics.effects import condition_effects
from emo_mlflow.sweeping.results import SweepResult, condition_of
from emo_mlflow.sweeping.schemas import COMPLETIONS, EFFECTS, FLUENCY, KEYS, SCORES
from emo_mlflow.sweeping.swept import SweptDirections
from emo_mlflow.sweeping.tables import condition_rows
from emo_mlflow.types import Condition, Direction, Fit, Prompt, digest

METRICS = (
    "sentiment.negative",
    "sentiment.positive",
    "politeness.polite",
    "goemotions.anger",
    "goemotions.gratitude",
    "goemotions.joy",
    "goemotions.remorse",
)
TARGETS = {"gratitude": "goemotions.gratitude", "anger": "goemotions.anger", "apology": "goemotions.remorse"}


def synthetic_sweep(
    model: str = "model-a",
    *,
    n_prompts: int = 12,
    n_layers: int = 6,
    layers: Sequence[int] | None = None,
    alphas: Sequence[float] = (1.0, 2.0),
    emotions: Sequence[str] = ("gratitude", "anger", "apology"),
    n_random: int = 5,
    samples: int = 1,
    scope: str = "generated",
    effect: float = 0.3,
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
) -> SweepResult:
    """A finished sweep whose directions raise their own label, most in the middle layer, and break text at |alpha| >= 4.

    At the middle layer and alpha 1 the target rises by `effect` on average; random directions by nothing. The prompts are the
    same for every model and seed.
    """
    rng = np.random.default_rng([seed, len(model), *model.encode()])
    asked = make_config(
        "seed",
        {
            "model": model,
            "layers": "all" if layers is None else ",".join(map(str, layers)),
            "emotions": ",".join(emotions),
            "alphas": ",".join(map(str, alphas)),
            "num_random": str(n_random),
            "samples_per_prompt": str(samples),
            "temperature": "1" if samples > 1 else "0",
            "max_samples": str(n_prompts),
            "scope": scope,
            **(settings or {}),
        },
    )
    config = asked.resolved(tuple(emotions), n_layers)
    prompts = [Prompt(f"The {i}th train leaves at noon", "neutral", "test") for i in range(n_prompts)]
    prompt_table = pd.DataFrame(
        [(p.prompt_id, p.emotion, p.text, None) for p in prompts], columns=["prompt_id", "emotion", "text", "before"]
    )
    conditions = list(_conditions(config.layers, alphas, emotions, n_random, scope))
    scores, completions = _cells(rng, conditions, prompts, samples, n_layers, effect)
    table = condition_rows(conditions).assign(n_patched=10 * n_prompts)
    fluency = completions[[*KEYS, *FLUENCY]].rename(columns=FLUENCY)
    norms = np.ones(n_layers, np.float32)
    return SweepResult(
        config=config,
        facts={
            "n_layers": n_layers,
            "d_model": 8,
            "model_fingerprint": digest(model),
            "scorer_fingerprints": {"embedded": "5" * 16},
            "reference": "neutral",
            "device": "cpu",
            "fit_hash": "f" * 16,
            "prompt_source": "builtin",
            "prompt_split": "roles of builtin",
            "n_cells": len(completions),
            "versions": {"emo_mlflow": "0"},
            "residual_norms": [1.0],
        },
        prompts=prompt_table,
        fit_prompts=prompt_table.iloc[:0],
        swept=SweptDirections(Fit({name: Direction(name, "resid_pre", np.ones((n_layers, 8), np.float32)) for name in emotions}, norms)),
        conditions=table,
        streamed=on_disk(completions, scores, condition_effects(scores.merge(fluency, on=KEYS), table)),
        metrics={"cells_per_second": 10.0, "seconds.generation": 1.0, "seconds.scoring": 0.1, "failed_cells": 0.0},
    )


def on_disk(completions: pd.DataFrame, scores: pd.DataFrame, effects: pd.DataFrame) -> Path:
    """A folder of the tables that a sweep streams, gone with the process."""
    folder = Path(mkdtemp(dir=_folder().name))
    COMPLETIONS.write(completions, folder / "completions.parquet")
    SCORES.write(scores, folder / "scores.parquet")
    EFFECTS.write(effects, folder / "effects.parquet")
    return folder


def with_effects(sweep: SweepResult, effects: pd.DataFrame) -> SweepResult:
    """The same sweep, had it found these."""
    return replace(sweep, streamed=on_disk(sweep.completions, sweep.scores, effects))


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="emo-synthetic-")


@dataclass(frozen=True, eq=False, kw_only=True)
class TableSource(Source):
    """A sweep of which a test can change the tables: the rest follows from them."""

    completions: pd.DataFrame
    scores: pd.DataFrame
    tables: Callable[[], tuple[pd.DataFrame, pd.DataFrame]] = field(init=False)
    texts: Callable[[Sequence[str]], pd.DataFrame] = field(init=False)

    def __post_init__(self) -> None:
        done = self.completions[self.completions["failure"].isna()]
        object.__setattr__(self, "tables", lambda: (self.completions, self.scores))
        object.__setattr__(self, "texts", lambda ids: done[done["condition_id"].isin(ids)])


def as_source(sweep: SweepResult, run_id: str | None = None) -> TableSource:
    """A sweep as a comparison reads it."""
    return TableSource(
        run_id=run_id or digest([sweep.config.model, sweep.config.scope, sweep.config.seed], 32),
        label=sweep.config.model,
        config=asdict(sweep.config),
        facts=sweep.facts,
        prompts=sweep.prompts,
        conditions=sweep.conditions,
        completions=sweep.completions,
        scores=sweep.scores,
        seconds=61.5,
    )


def _conditions(layers, alphas, emotions, n_random, scope):  # type: ignore[no-untyped-def]
    yield Condition("baseline")
    window = 3 if scope == "window" else None
    for emotion, alpha, layer in itertools.product(emotions, alphas, layers):
        own = Condition("emotion", emotion, layer, alpha, scope=scope, patch_window=window)
        yield own
        for draw in range(n_random):
            yield replace(own, kind="random", draw=draw, seed=0)


def _cells(rng, conditions, prompts, samples, n_layers, effect):  # type: ignore[no-untyped-def]
    """Scores and completions: every prompt has its own level, every random direction its own small effect."""
    shape = (len(prompts), samples, len(METRICS))
    level = rng.uniform(0.02, 0.3, size=(len(prompts), 1, len(METRICS)))
    base = level + rng.normal(0, 0.01, size=shape)
    rows, texts = [], []
    for condition in conditions:
        values, nll, distinct = base.copy(), rng.normal(2.0, 0.2, shape[:2]), np.full(shape[:2], 0.95)
        broken = rng.uniform(0.0, 0.1, shape[:2])
        text = "and everyone gets on in time."
        if condition.kind == "random":
            values += rng.normal(0, 0.015, size=len(METRICS)) + rng.normal(0, 0.02, size=shape)
        elif condition.kind == "emotion":
            peak = max(0.0, 1 - abs(condition.layer - n_layers / 2) / (n_layers / 2))
            strength = np.tanh(condition.alpha) / np.tanh(1.0) * peak
            values += rng.normal(0, 0.02, size=shape)
            values[..., METRICS.index(TARGETS.get(condition.emotion, "goemotions.joy"))] += (
                effect * strength * rng.uniform(0.5, 1.5, size=shape[:2])
            )
            values[..., METRICS.index("sentiment.positive")] += 0.2 * effect * strength
            nll += 0.15 * condition.alpha**2
            distinct -= 0.5 * (abs(condition.alpha) >= 4)
            broken += 0.02 * condition.alpha**2 + 0.5 * (abs(condition.alpha) >= 4)
            text = f"and I <b>feel</b> {condition.emotion} | so much at layer {condition.layer}."
        for p, prompt in enumerate(prompts):
            for s in range(samples):
                rows.append((condition.condition_id, prompt.prompt_id, s, *values[p, s]))
                texts.append((condition.condition_id, prompt.prompt_id, s, text, 20, nll[p, s], 1.5, distinct[p, s], broken[p, s], None))
    scores = pd.DataFrame(rows, columns=[*KEYS, *METRICS]).astype(dict.fromkeys(METRICS, np.float32))
    frame = pd.DataFrame(texts, columns=COMPLETIONS.names)
    return scores, pa.Table.from_pandas(frame, COMPLETIONS.schema(COMPLETIONS.names), preserve_index=False).to_pandas()


def with_combination(shares: tuple[float, float], bonus: float) -> Source:
    """A sweep to which a combination of gratitude and anger at layer 2 is added that does the sum, and `bonus` to gratitude's label."""
    source = as_source(synthetic_sweep("model-a", alphas=(1.0, 2.0), n_prompts=24, n_random=0))
    table = source.conditions
    at = table[(table["kind"] == "emotion") & (table["layer"] == 2)].set_index(["emotion", "alpha"])["condition_id"]
    alone = [at["gratitude", 2.0 * shares[0]], at["anger", 2.0 * shares[1]]]
    baseline = table.loc[table["kind"] == "baseline", "condition_id"].iloc[0]
    pattern = table[table["condition_id"] == at["gratitude", 2.0]].iloc[0]
    edits = f"gratitude@2*{shares[0]:g};anger@2*{shares[1]:g}"
    condition = replace(condition_of(pattern.to_dict()), emotion="both", edits=edits)
    row = pattern.to_dict() | asdict(condition) | {"condition_id": condition.condition_id}
    scores = source.scores.set_index(["prompt_id", "sample"])
    metrics = [name for name in scores.columns if name != "condition_id"]
    by_id = {name: scores[scores["condition_id"] == name][metrics] for name in (baseline, *alone)}
    added = by_id[alone[0]] + by_id[alone[1]] - by_id[baseline]
    rng = np.random.default_rng(0)
    added["goemotions.gratitude"] += (bonus + 0.05 * rng.normal(size=len(added))).astype(np.float32)
    more = added.reset_index().assign(condition_id=condition.condition_id)
    texts = source.completions[source.completions["condition_id"] == alone[0]].assign(condition_id=condition.condition_id)
    return replace(
        source,
        conditions=pd.concat([table, pd.DataFrame([row])[list(table.columns)]], ignore_index=True),
        scores=pd.concat([source.scores, more[list(source.scores.columns)]], ignore_index=True),
        completions=pd.concat([source.completions, texts], ignore_index=True),
    )
