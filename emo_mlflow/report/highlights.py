"""Which of a comparison's many conditions its report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.families import significant
from emo_mlflow.comparison.recommendations import largest
from emo_mlflow.comparison.responses import Responses
from emo_mlflow.comparison.rows import records
from emo_mlflow.scoring.broken import breaks_text
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.sweeping.schemas import FLUENCY

FLUENCY_PREFIX = "fluency."
SMALLEST_CHANGE = 0.01  # of a score


def highlights(comparison: Comparison) -> pd.DataFrame:
    """For each model and emotion the condition that stands for it, joined with its row of `tradeoff`.

    The recommended one; without a recommendation the one with the largest rise in whole text; if there is none, the one with the
    largest gain in size. Emotions without a target metric have no row. `recommended` says which.
    """
    tables = comparison.tables
    rows = []
    for row in records(tables["recommendations"]):
        own = tables["tradeoff"]
        own = own[(own["model"] == row["model"]) & (own["emotion"] == row["emotion"])]
        if not len(own) or own["gain"].isna().all():
            continue
        recommended = isinstance(row.get("condition_id"), str)
        best = largest(own[own["asked"].astype(bool)])
        if recommended:
            chosen = own[own["condition_id"] == row["condition_id"]]
        else:
            chosen = own[own["gain"].abs() == own["gain"].abs().max()] if best is None else own.loc[[best]]
        rows.append(chosen.head(1).assign(recommended=recommended, reason=row["reason"]))
    return (
        pd.concat(rows, ignore_index=True) if rows else tables["tradeoff"].iloc[:0].assign(recommended=False, reason="")
    )


def strongest(comparison: Comparison, most: int) -> pd.DataFrame:
    """Rows of `effect_sizes`: of each model, emotion and metric the strongest, significant (BH) first and by |hedges_g|.

    Each emotion's own label comes before what else changed. Conditions that break the text are left out, and changes of
    less than SMALLEST_CHANGE, which can have a large d_z where a score hardly moves at all.
    """
    table = comparison.tables["effect_sizes"]
    fluency = table.pivot_table(index=["model", "condition_id"], columns="metric", values="mean_diff", dropna=False)
    broken = breaks_text(fluency[FLUENCY["broken"]])
    table = table[~pd.MultiIndex.from_frame(table[["model", "condition_id"]]).isin(fluency.index[broken])]
    table = table[(table["mean_diff"].abs() >= SMALLEST_CHANGE) & ~table["metric"].str.startswith(FLUENCY_PREFIX)]
    metrics = set(table["metric"])
    other = [target_metric(e, metrics) != m for e, m in zip(table["emotion"], table["metric"], strict=True)]
    table = table.assign(other=other, size=table["hedges_g"].abs(), weak=~significant(table["p_bh"]))
    table = table.dropna(subset=["size"]).sort_values(["other", "weak", "size"], ascending=[True, True, False])
    best = table.drop_duplicates(["model", "emotion", "metric"])
    # Every emotion of every model has a place before any has a second.
    best = best.assign(place=best.groupby(["model", "emotion"]).cumcount())
    chosen = best.sort_values(["place", "weak", "size"], ascending=[True, True, False]).head(most)
    return chosen.sort_values(["other", "weak", "size"], ascending=[True, True, False])


def sweep_of(comparison: Comparison, model: str) -> Responses:
    """The sweep with a label."""
    return next(sweep for sweep in comparison.sweeps if sweep.source.label == model)


def draw_effects(comparison: Comparison, model: str, condition_id: str, metric: str) -> Floats:
    """Mean changes of a metric under the random controls of a condition."""
    sweep = sweep_of(comparison, model)
    values = sweep.change[sweep.draws[sweep.position(condition_id)]][:, :, sweep.metric(metric)].astype(float)
    return np.nanmean(values, axis=1) if len(values) else np.array([])


def setting_name(row: Mapping[str, Any], t: Mapping[str, str]) -> str:
    """Layer and strength or head of a condition, and its window where it has one."""
    window = "" if pd.isna(row["patch_window"]) else f", W = {int(row['patch_window'])}"
    if not pd.isna(row["head"]):
        return f"{t['short_layer']} {row['layer']}, {t['short_head']} {row['head']}{window}"
    return f"{t['short_layer']} {row['layer']}, α = {row['alpha']:g}{window}"


def examples(comparison: Comparison, shown: pd.DataFrame, per_condition: int) -> pd.DataFrame:
    """Baseline beside patched text at the given conditions, of the sweep's first prompts: not chosen by what they show.

    Returns:
        the columns of `shown`, and prompt, baseline, patched, score_baseline, score_patched (of the target).
    """
    rows = [
        {**row, **example}
        for row in records(shown)
        for example in _examples(sweep_of(comparison, row["model"]), row["condition_id"], row["target"])[:per_condition]
    ]
    columns = ["prompt", "baseline", "patched", "score_baseline", "score_patched"]
    return pd.DataFrame(rows, columns=[*shown.columns, *columns])


def _examples(sweep: Responses, condition_id: str, target: str) -> list[dict[str, Any]]:
    source = sweep.source
    baseline = source.conditions.loc[source.conditions["kind"] == "baseline", "condition_id"].iloc[0]
    done = source.texts([baseline, condition_id]).drop_duplicates(["condition_id", "prompt_id"])
    before, after = (
        done[done["condition_id"] == condition].set_index("prompt_id")["completion"]
        for condition in (baseline, condition_id)
    )
    position, metric = sweep.position(condition_id), sweep.metric(target)
    found = []
    for prompt_id, text in zip(source.prompts["prompt_id"], source.prompts["text"], strict=True):
        if prompt_id in before and prompt_id in after and prompt_id in sweep.prompt_ids:
            column = sweep.prompt_ids.index(prompt_id)
            scores = {
                f"score_{n}": float(a[position, column, metric])
                for n, a in (("baseline", sweep.before), ("patched", sweep.after))
            }
            found.append({"prompt": text, "baseline": before[prompt_id], "patched": after[prompt_id], **scores})
    return found
