"""Studies of which it is known that there is nothing to find, or how much: sweeps whose scores are drawn from a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from synthetic import as_source, synthetic_sweep

from emo_mlflow.comparison import Source

LEVEL = -4.0  # of a label on the logit scale: scores near 0, and skewed
BETWEEN_PROMPTS, WITHIN = 1.0, 0.7  # standard deviations on the logit scale


def simulated_sweep(
    rng: np.random.Generator,
    *,
    n_prompts: int,
    n_draws: int,
    spread: float,
    n_emotions: int = 3,
    n_layers: int = 2,
    alphas: tuple[float, ...] = (1.0, 2.0),
    together: float = 0.0,
    effect: float = 0.0,
    n_real: int = 1,
) -> Source:
    """A sweep in which every direction of an emotion is one more random direction, but for `effect`.

    A direction moves a label by its own deviation, which all prompts share: that is why another sample of prompts does not make a chosen
    cell fair. All directions lower labels a little, as random ones were seen to.

    Args:
        spread: standard deviation of directions' deviations over cells, on the logit scale; real sweeps have 0.2 to 0.6.
        together: correlation of an emotion's own deviations over its cells; a random direction's are independent, because layers have
            draws of their own.
        effect: what the directions of the first `n_real` emotions add to their own label on the logit scale, at every cell.
    """
    emotions = [f"e{i}" for i in range(n_emotions)]
    metrics = [f"goemotions.{emotion}" for emotion in emotions]
    cells = [(layer, alpha) for layer in range(n_layers) for alpha in alphas]
    rows = [("base", "baseline", None, None, None, None)]
    shifts = [np.zeros(n_emotions)]
    for e, emotion in enumerate(emotions):
        shared = rng.normal(size=n_emotions)
        for layer, alpha in cells:
            own = np.sqrt(together) * shared + np.sqrt(1 - together) * rng.normal(size=n_emotions)
            rows.append((f"{emotion}.{layer}.{alpha}", "emotion", emotion, layer, alpha, None))
            shifts.append(spread * own - 0.1 + effect * (e < n_real) * (np.arange(n_emotions) == e))
            for draw in range(n_draws):
                rows.append((f"{emotion}.{layer}.{alpha}.{draw}", "random", emotion, layer, alpha, draw))
                shifts.append(spread * rng.normal(size=n_emotions) - 0.1)
    conditions = pd.DataFrame(rows, columns=["condition_id", "kind", "emotion", "layer", "alpha", "draw"])
    conditions = conditions.assign(head=None, scope="generated", patch_window=None, n_patched=1)
    kinds = {"layer": "Int64", "head": "Int64", "alpha": "Float64", "draw": "Int64", "patch_window": "Int64"}
    prompt = rng.normal(LEVEL, BETWEEN_PROMPTS, size=(1, n_prompts, n_emotions))
    logits = prompt + np.array(shifts)[:, None] + rng.normal(0, WITHIN, size=(len(rows), n_prompts, n_emotions))
    ids = [f"p{i}" for i in range(n_prompts)]
    keys = pd.DataFrame(
        {
            "condition_id": np.repeat(conditions["condition_id"].to_numpy(object), n_prompts),
            "prompt_id": np.tile(np.array(ids, object), len(rows)),
            "sample": 0,
        }
    )
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32).reshape(-1, n_emotions)
    completions = keys.assign(completion="", n_tokens=20, nll=2.0, nll_sd=1.5, distinct_2=0.95, broken=0.1, failure=None)
    frame = as_source(synthetic_sweep("simulated", n_prompts=2, layers=(0,), alphas=(1.0,), emotions=("joy",), n_random=0))
    return replace(
        frame,
        prompts=pd.DataFrame({"prompt_id": ids, "emotion": "neutral", "text": ids}),
        conditions=conditions.astype(kinds),
        completions=completions,
        scores=pd.concat([keys, pd.DataFrame(scores, columns=metrics)], axis=1),
    )
