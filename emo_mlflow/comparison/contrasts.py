"""Between models: differences of effects, what the effects have in common, and layers matched by relative depth."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import with_corrections
from emo_mlflow.comparison.responses import Responses
from emo_mlflow.statistics import paired_effects, random_effects

FULL = ["emotion", "alpha", "scope", "patch_window"]
LOOSE = ["emotion", "alpha"]


def matched_conditions(first: Responses, second: Responses) -> pd.DataFrame:
    """Pairs of conditions to compare: `a` and `b`, their positions in either sweep.

    Same emotion and alpha, and same scope and window unless each sweep has only one of its own; of the layers, each
    of the sweep with fewer is paired with the other's nearest in relative depth. Heads of different models do not correspond.
    """
    if first.source.phase == "head":
        return pd.DataFrame(columns=["a", "b"])
    tables = []
    for sweep in (first, second):
        table = sweep.conditions.iloc[sweep.rows("emotion")]
        tables.append(table.assign(depth=sweep.source.depth(table["layer"]), position=table.index))
    single = all(len(table[["scope", "patch_window"]].drop_duplicates()) == 1 for table in tables)
    keys = LOOSE if single else FULL
    fewer = 0 if tables[0]["layer"].nunique() <= tables[1]["layer"].nunique() else 1
    columns = [*keys, "depth", "position"]
    pairs = tables[fewer][columns].merge(tables[1 - fewer][columns], on=keys, suffixes=("_few", "_many"))
    gap = (pairs["depth_few"] - pairs["depth_many"]).abs()
    pairs = pairs.assign(gap=gap).sort_values(["position_few", "gap", "position_many"]).drop_duplicates("position_few")
    names = ("a", "b") if fewer == 0 else ("b", "a")
    return pairs.rename(columns={"position_few": names[0], "position_many": names[1]})[["a", "b"]].reset_index(
        drop=True
    )


def model_contrasts(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """Differences between models' effects, a row per pair of models, matched condition and shared metric.

    Returns:
        model_a, model_b, emotion, alpha, scope_a, scope_b, layer_a, layer_b, depth_a, depth_b, metric; n (shared
        prompts), effect_a, effect_b (over those), difference = effect_a - effect_b, paired by prompt, with its interval (low, high),
        d_z, p (sign flips), p_t and corrections of p.
    """
    parts = []
    for first, second in combinations(sweeps, 2):
        pairs = matched_conditions(first, second)
        if len(pairs):
            parts.append(_of_pair(first, second, pairs, n_bootstrap, seed))
    if not parts:
        return pd.DataFrame(columns=["model_a", "model_b", *LOOSE, "metric", "difference", "p"])
    return with_corrections(pd.concat(parts, ignore_index=True), "p", family)


def _of_pair(first: Responses, second: Responses, pairs: pd.DataFrame, n_bootstrap: int, seed: int) -> pd.DataFrame:
    metrics = [metric for metric in first.metrics if metric in second.metrics]
    shared = [prompt for prompt in first.prompt_ids if prompt in set(second.prompt_ids)]
    changes = []
    for sweep, positions in ((first, pairs["a"]), (second, pairs["b"])):
        prompts = [sweep.prompt_ids.index(prompt) for prompt in shared]
        columns = [sweep.metric(metric) for metric in metrics]
        picked = sweep.change[positions.to_numpy()][:, prompts][:, :, columns]
        changes.append(picked.transpose(1, 0, 2).reshape(len(shared), -1))
    found = paired_effects(changes[1], changes[0], n_bootstrap, seed)
    left, right = first.conditions.iloc[pairs["a"]], second.conditions.iloc[pairs["b"]]
    keys = pd.DataFrame(
        {
            "model_a": first.source.label,
            "model_b": second.source.label,
            "emotion": left["emotion"].to_numpy(),
            "alpha": left["alpha"].to_numpy(),
            "scope_a": left["scope"].to_numpy(),
            "scope_b": right["scope"].to_numpy(),
            "layer_a": left["layer"].to_numpy(),
            "layer_b": right["layer"].to_numpy(),
            "depth_a": first.source.depth(left["layer"]).to_numpy(),
            "depth_b": second.source.depth(right["layer"]).to_numpy(),
        }
    )
    keys = keys.loc[np.repeat(keys.index, len(metrics))].reset_index(drop=True)
    keys["metric"] = np.tile(np.array(metrics, object), len(pairs))
    names = {
        "n": "n",
        "mean_patched": "effect_a",
        "mean_baseline": "effect_b",
        "mean_diff": "difference",
        "diff_low": "low",
        "diff_high": "high",
        "d_z": "d_z",
        "p_permutation": "p",
        "p_t": "p_t",
        "reason": "reason",
    }
    return pd.concat([keys, found[list(names)].rename(columns=names)], axis=1)


def model_summary(sweeps: list[Responses], effects: pd.DataFrame) -> pd.DataFrame:
    """Random-effects summary of mean_diff over models, on the layers of the model that swept the fewest.

    Returns:
        emotion, alpha, depth, layers (of each model, as text), metric, and the columns of `random_effects`. Empty for
        fewer than two models, for heads, or where one model occurs twice, whose sweeps are no independent sample of models.
    """
    empty = pd.DataFrame(columns=[*LOOSE, "depth", "layers", "metric", "k", "estimate"])
    models = [sweep.source.facts["model_fingerprint"] for sweep in sweeps]
    if len(sweeps) < 2 or sweeps[0].source.phase == "head" or len(set(models)) < len(sweeps):
        return empty
    base = min(sweeps, key=lambda sweep: sweep.conditions["layer"].nunique())
    matched = [_matched_effects(base, sweep, effects) for sweep in sweeps]
    keys = [*LOOSE, "depth", "metric"]
    table = pd.concat(matched, ignore_index=True)
    table["variance"] = table["sd_diff"] ** 2 / table["n"]
    wide = table.pivot(index=keys, columns="model", values=["mean_diff", "variance", "layer"])
    if not len(wide):
        return empty
    found = random_effects(wide["mean_diff"].to_numpy(float).T, wide["variance"].to_numpy(float).T)
    layers = wide["layer"].apply(
        lambda row: ", ".join(f"{model}: {int(layer)}" for model, layer in row.dropna().items()), axis=1
    )
    return pd.concat([wide.index.to_frame(index=False), found], axis=1).assign(layers=layers.to_numpy())


def _matched_effects(base: Responses, sweep: Responses, effects: pd.DataFrame) -> pd.DataFrame:
    """Effects of a sweep at the conditions that match the base's, under the base's depth."""
    columns = ["model", "emotion", "alpha", "metric", "layer", "n", "mean_diff", "sd_diff"]
    own = effects[effects["model"] == sweep.source.label]
    if sweep is base:
        return own[columns].assign(depth=own["depth"]).drop_duplicates(["emotion", "alpha", "metric", "depth"])
    pairs = matched_conditions(base, sweep)
    chosen = sweep.conditions.loc[pairs["b"], "condition_id"].to_numpy()
    depth = base.source.depth(base.conditions.loc[pairs["a"], "layer"]).to_numpy()
    where = pd.DataFrame({"condition_id": chosen, "depth": depth})
    merged = own.drop(columns="depth").merge(where, on="condition_id")
    return merged[[*columns, "depth"]].drop_duplicates(["emotion", "alpha", "metric", "depth"])
