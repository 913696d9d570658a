"""Which layers of a sweep do most, for whoever takes one direction out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from emo_mlflow.scoring.broken import breaks_text
from emo_mlflow.scoring.targets import expected_sign, target_metric
from emo_mlflow.sweeping.schemas import FLUENCY

Scores = dict[str, dict[int, float]]


def layer_scores(effects: pd.DataFrame, accuracy: Mapping[str, Sequence[float]]) -> Scores:
    """By emotion and swept layer, how far the best strength moves the emotion's own label, the way it should, without breaking the text.

    Where no score is the emotion's own, or every text breaks: how well the direction tells held-out texts apart at that layer.

    Args:
        effects: of the conditions of emotions, with the columns of these.
        accuracy: of directions that were fitted, by emotion, for every layer.
    """
    found: Scores = {}
    wide = effects.pivot(index="condition_id", columns="metric", values="mean_diff")
    for emotion, rows in effects.drop_duplicates("condition_id").groupby("emotion", sort=False):
        name = str(emotion)
        own, target = rows.set_index("condition_id"), target_metric(name, set(wide.columns))
        kept = wide.reindex(own.index)
        layers = own["layer"].astype(int)
        if target is not None:
            signs = [expected_sign(op, float(alpha)) for op, alpha in zip(own["operation"], own["alpha"], strict=True)]
            gains = (kept[target] * signs)[~breaks_text(kept[FLUENCY["broken"]])].dropna()
            found[name] = {int(layer): float(gain) for layer, gain in gains.groupby(layers).max().items()}  # type: ignore[call-overload]
        if not found.get(name) and name in accuracy:
            found[name] = {layer: float(accuracy[name][layer]) for layer in sorted(set(layers))}
    return found


def dump_scores(scores: Scores) -> str:
    """As a file's metadata holds them."""
    return json.dumps(scores)


def best_layer(metadata: Mapping[str, str], emotion: str, first: int) -> int | None:
    """The layer from `first` on with the highest score in a file's metadata; None if it has none."""
    try:
        scores = {int(layer): float(score) for layer, score in json.loads(metadata.get("layer_scores", "{}"))[emotion].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return max((layer for layer in scores if layer >= first), key=lambda layer: scores[layer], default=None)
