"""Is an effect the direction's own? Against random directions of the same norm, each of which is one draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from emo_mlflow.statistics.moments import Floats, Mask, divide
from emo_mlflow.statistics.resampling import LEVEL

SAME = 1e-12  # relative: effects that differ by less are ties, and a tie counts against the effect


def specific_effects(effect: Floats, draws: Floats) -> pd.DataFrame:
    """Effects of a direction against those of its random controls, a row per test.

    Args:
        effect: differences from baseline [n_prompts, n_tests] under the direction.
        draws: the same under each random direction, [n_draws, n_prompts, n_tests]. A prompt that is NaN in the effect
            or in any draw is dropped from that test; a draw that is NaN throughout is no draw.

    Returns:
        n, n_draws; effect and draws_mean, draws_sd (of the draws' mean differences); p = (1 + #{|draw| >= |effect|}) /
        (n_draws + 1), smallest_p = 1 / (n_draws + 1), z = (effect - draws_mean) / draws_sd; specific = effect -
        draws_mean with specific_low, specific_high: a 95% interval over both prompts and draws.

    The interval is Student's with the variance of crossed random effects, A + D - C: A the prompts' (effect minus mean
    draw) over n, D the draws' over n_draws, and C the residual's, which both count, over n n_draws; degrees of freedom
    by Satterthwaite (1946). It is NaN for fewer than two prompts or draws.
    """
    draws = draws[~np.isnan(draws).all(axis=(1, 2))].astype(float)
    present = ~(np.isnan(effect) | np.isnan(draws).any(axis=0))
    n, n_draws = present.sum(axis=0), len(draws)
    own = divide(np.where(present, effect, 0.0).sum(axis=0, dtype=float), n)
    means = divide(np.where(present, draws, 0.0).sum(axis=1), n)
    blank = np.full(len(n), np.nan)
    centre = means.mean(axis=0) if n_draws else blank
    spread = means.std(axis=0, ddof=1) if n_draws > 1 else blank
    hits = (np.abs(means) >= np.abs(own) * (1 - SAME)).sum(axis=0)
    half = _half_width(effect, draws, present, centre) if n_draws > 1 else blank
    return pd.DataFrame(
        {
            "n": n,
            "n_draws": n_draws,
            "effect": own,
            "draws_mean": centre,
            "draws_sd": spread,
            "z": divide(own - centre, np.where(spread > SAME * np.abs(means).max(axis=0, initial=0), spread, 0.0)),
            "p": np.where((n > 0) & (n_draws > 0), (1 + hits) / (n_draws + 1), np.nan),
            "smallest_p": 1 / (n_draws + 1) if n_draws else np.nan,
            "specific": own - centre,
            "specific_low": own - centre - half,
            "specific_high": own - centre + half,
        }
    )


def _half_width(effect: Floats, draws: Floats, present: Mask, centre: Floats) -> Floats:
    """Half of the interval's width, per test."""
    n, n_draws = present.sum(axis=0), len(draws)
    by_prompt = np.where(present, draws.mean(axis=0), 0.0)
    by_draw = divide(np.where(present, draws, 0.0).sum(axis=1), n)
    own = np.where(present, effect - by_prompt, 0.0)
    own = np.where(present, own - divide(own.sum(axis=0), n), 0.0)
    rest = np.where(present, draws - by_prompt - by_draw[:, None, :] + centre, 0.0)
    df_prompts, df_draws = np.maximum(n - 1, 0), n_draws - 1
    prompts = divide((own**2).sum(axis=0), df_prompts * n)
    between = ((by_draw - centre) ** 2).sum(axis=0) / (df_draws * n_draws)
    both = divide((rest**2).sum(axis=(0, 1)), df_prompts * df_draws * n * n_draws)
    # Sampling can make the difference smaller than either part, which the truth never is.
    variance = np.maximum(prompts + between - both, np.maximum(prompts, between))
    parts = divide(prompts**2, df_prompts) + between**2 / df_draws + divide(both**2, df_prompts * df_draws)
    df = divide(variance**2, parts)
    return stats.t.ppf((1 + LEVEL) / 2, df) * np.sqrt(variance)
