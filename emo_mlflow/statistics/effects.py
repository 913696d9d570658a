"""Paired effects of every condition of a sweep against its baseline."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.statistics.moments import Floats, Integers, divide, paired_moments

KEYS = ["condition_id", "prompt_id", "sample"]
CHUNK_BYTES = 32 * 2**20


def condition_effects(values: pd.DataFrame, conditions: pd.DataFrame) -> pd.DataFrame:
    """The effect of every condition but the baseline on every metric, in the order of `conditions` and of the columns.

    The prompt is the unit: differences are paired by prompt_id (and by sample, whose noise the arms share), and the
    samples of one prompt are averaged first.

    Args:
        values: condition_id, prompt_id, sample, and a float column per metric; NaN, or no row, where a cell has none.
        conditions: condition_id, and kind, which is `baseline` exactly once.

    Returns:
        condition_id, metric, n (pairs), mean_baseline, mean_patched (over the same pairs), mean_diff, d_z (mean over
        standard deviation of the differences, Cohen 1988; NaN where that is 0 or n < 2).

    Raises:
        ValueError: if there is not exactly one baseline, a cell occurs twice, or a cell's condition is unknown.
    """
    is_baseline = conditions["kind"].to_numpy() == "baseline"
    if is_baseline.sum() != 1:
        raise ValueError(f"there must be exactly one baseline condition, not {is_baseline.sum()}")
    metrics = [column for column in values.columns if column not in KEYS]
    cube = prompt_cube(values, conditions["condition_id"], metrics)
    baseline, patched = cube[is_baseline][0], cube[~is_baseline]
    step = max(1, CHUNK_BYTES // max(1, baseline.size * 8))
    eps = np.array([np.finfo(values[metric].to_numpy().dtype).eps for metric in metrics])
    parts = [_chunk_effects(baseline, patched[i : i + step], eps) for i in range(0, len(patched), step)]
    ids = conditions["condition_id"].to_numpy()[~is_baseline]
    keys = {"condition_id": np.repeat(ids, len(metrics)), "metric": np.tile(np.array(metrics, object), len(ids))}
    columns = {name: np.concatenate([part[name].ravel() for part in parts]) for name in (parts[0] if parts else ())}
    return pd.DataFrame({**keys, **columns}, columns=["condition_id", "metric", *EFFECT_COLUMNS])


EFFECT_COLUMNS = ["n", "mean_baseline", "mean_patched", "mean_diff", "d_z"]


def prompt_cube(values: pd.DataFrame, condition_ids: pd.Series, metrics: list[str]) -> Floats:
    """Values as an array [conditions, prompts, samples, metrics], NaN where a cell has none.

    Raises:
        ValueError: if a cell occurs twice or belongs to no condition.
    """
    row = pd.Index(condition_ids).get_indexer(values["condition_id"])
    if (row < 0).any():
        raise ValueError(f"unknown condition_id {values['condition_id'].to_numpy()[row < 0][0]!r}")
    prompt, prompts = pd.factorize(values["prompt_id"], sort=False)
    sample, samples = pd.factorize(values["sample"], sort=False)
    cell = np.ravel_multi_index((row, prompt, sample), (len(condition_ids), max(1, len(prompts)), max(1, len(samples))))
    if len(np.unique(cell)) != len(cell):
        raise ValueError("a cell (condition_id, prompt_id, sample) occurs more than once")
    table = values[metrics].to_numpy()
    cube = np.full((len(condition_ids), len(prompts), len(samples), len(metrics)), np.nan, table.dtype)
    cube.reshape(-1, len(metrics))[cell] = table
    return cube


def _chunk_effects(baseline: Floats, patched: Floats, eps: Floats) -> dict[str, Floats | Integers]:
    """Columns of shape [conditions, metrics] from values of shape [prompts, samples, metrics] and [conditions, ...]."""
    pair = sample_means(baseline[None], patched)
    moments = paired_moments(*pair, axis=1, eps=eps)
    return {
        "n": moments.n,
        "mean_baseline": moments.mean_baseline,
        "mean_patched": moments.mean_patched,
        "mean_diff": moments.mean_diff,
        "d_z": divide(moments.mean_diff, moments.sd_diff),
    }


def sample_means(baseline: Floats, patched: Floats) -> tuple[Floats, Floats]:
    """Averages both arms over the sample axis (-2), over the samples that both have."""
    if patched.shape[-2] == 1:
        return baseline[..., 0, :], patched[..., 0, :]
    present = ~(np.isnan(baseline) | np.isnan(patched))
    count = present.sum(-2)
    before, after = (divide(np.where(present, arm, 0.0).sum(-2, dtype=float), count) for arm in (baseline, patched))
    return before, after
