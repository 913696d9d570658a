"""Is an effect the direction's own? Against random directions of the same norm, each of which is one draw."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd

from emo_mlflow.statistics.crossed import crossed_half_width
from emo_mlflow.statistics.moments import Floats, Integers, Mask, divide

SAME = 1e-12  # relative: effects that differ by less are ties, and a tie counts against the effect
NO_DRAWS, NO_PROMPTS, NO_INTERVAL = "no random directions", "no prompts", "fewer than two prompts or draws: no interval"
ALTERNATIVES = {1: "greater", -1: "less", 0: "two-sided"}


def specific_effects(effect: Floats, draws: Floats, sign: npt.ArrayLike = 0) -> pd.DataFrame:
    """Effects of a direction against those of its random controls, a row per test.

    Args:
        effect: differences from baseline [n_prompts, n_tests] under the direction.
        draws: the same under each random direction, [n_draws, n_prompts, n_tests]. A draw that is NaN throughout a test is no draw
            of that test; a prompt that is NaN in the effect or in any draw of a test is dropped from that test.
        sign: of each test, or of all: 1 where the direction is expected to raise, -1 to lower, 0 where nothing is expected.

    Returns:
        n, n_draws; effect and draws_mean, draws_sd, draws_min, draws_max (of the draws' mean differences); z = (effect -
        draws_mean) / draws_sd; alternative (greater, less, two-sided); p = (1 + #{draw >= effect}) / (n_draws + 1) where a rise
        is expected, with <= where a fall is, and otherwise twice the smaller of both, at most 1; smallest_p, the least that p can
        be with so many draws; beyond_mean = effect - draws_mean with beyond_mean_low, beyond_mean_high; reason: why values are
        NaN, or an empty text.

    The interval is over both prompts and draws, that of crossed random effects: A the prompts' (effect minus mean draw) over n, D
    the draws' over n_draws, and C the residual's, which both count, over n n_draws. It bounds the distance to the *mean* of all
    random directions, from which a single one is away too: it is no test of specificity, p is.
    """
    there = np.asarray(~np.isnan(draws).all(axis=1))
    present = np.asarray(~(np.isnan(effect) | (np.isnan(draws) & there[:, None]).any(axis=0)))
    n, n_draws = present.sum(axis=0), there.sum(axis=0)
    used = np.where(there[:, None] & present, draws, 0.0).astype(float)
    own = divide(np.where(present, effect, 0.0).sum(axis=0, dtype=float), n)
    means = np.where(there, divide(used.sum(axis=1), n), np.nan)
    centre = divide(np.where(there, means, 0.0).sum(axis=0), n_draws)
    around = np.where(there, means - centre, 0.0)
    spread = np.sqrt(divide((around**2).sum(axis=0), np.maximum(n_draws - 1, 0)))
    largest = np.abs(np.where(there, means, 0.0)).max(axis=0, initial=0)
    half = _half_width(effect, used, there, present, around)
    p, smallest = _place(own, means, n_draws, np.broadcast_to(np.asarray(sign, int), own.shape))
    any_draws = (n_draws > 0) & (n > 0)
    return pd.DataFrame(
        {
            "n": n,
            "n_draws": n_draws,
            "effect": own,
            "draws_mean": centre,
            "draws_sd": spread,
            "draws_min": np.where(any_draws, np.where(there, means, np.inf).min(axis=0, initial=np.inf), np.nan),
            "draws_max": np.where(any_draws, np.where(there, means, -np.inf).max(axis=0, initial=-np.inf), np.nan),
            "z": divide(own - centre, np.where(spread > SAME * largest, spread, 0.0)),
            "alternative": [ALTERNATIVES[value] for value in np.broadcast_to(np.asarray(sign, int), own.shape).tolist()],
            "p": np.where(any_draws, p, np.nan),
            "smallest_p": np.where(n_draws > 0, smallest, np.nan),
            "beyond_mean": own - centre,
            "beyond_mean_low": own - centre - half,
            "beyond_mean_high": own - centre + half,
            "reason": np.select([n == 0, n_draws == 0, np.isnan(half)], [NO_PROMPTS, NO_DRAWS, NO_INTERVAL], ""),
        }
    )


def _place(own: Floats, means: Floats, n_draws: Integers, sign: Integers) -> tuple[Floats, Floats]:
    """p of each effect among the draws' means [n_draws, n_tests], and the least that it could be."""
    slack = SAME * np.abs(own)
    above, below = (means >= own - slack).sum(axis=0), (means <= own + slack).sum(axis=0)
    rises, falls = (1 + above) / (n_draws + 1), (1 + below) / (n_draws + 1)
    either = np.minimum(1.0, 2 * np.minimum(rises, falls))
    return np.select([sign > 0, sign < 0], [rises, falls], either), np.where(sign == 0, 2, 1) / (n_draws + 1)


def _half_width(effect: Floats, draws: Floats, there: Mask, present: Mask, around: Floats) -> Floats:
    """Half of the interval's width, per test; `draws` hold 0 where there is no value, `around` are their means about the centre."""
    n, n_draws = present.sum(axis=0), there.sum(axis=0)
    by_prompt = divide(draws.sum(axis=0), n_draws)
    own = np.where(present, effect - by_prompt, 0.0)
    own = np.where(present, own - divide(own.sum(axis=0), n), 0.0)
    rest = draws - by_prompt - around[:, None, :]
    rest = np.where(there[:, None] & present, rest, 0.0)
    df_prompts, df_draws = np.maximum(n - 1, 0), np.maximum(n_draws - 1, 0)
    prompts = divide((own**2).sum(axis=0), df_prompts * n)
    between = divide((around**2).sum(axis=0), df_draws * n_draws)
    both = divide((rest**2).sum(axis=(0, 1)), df_prompts * df_draws * n * n_draws)
    return crossed_half_width(prompts, between, both, df_prompts, df_draws)


def searched_p(best: float, controls: Floats, candidates: int = 1) -> float:
    """p of the best of several candidates among controls that searched as it did.

    One direction that was tried at many places is one candidate, whose value is its best place's, and so is every control's. Of
    several candidates, such as heads, each of which is as good as a control if there is nothing to find, the best is among the
    controls what the best of `candidates` picked from all would be.

    Args:
        best: the largest value of the candidates.
        controls: float [n_controls], each control's own largest value; -inf for one that has none.

    Returns:
        the probability that a random choice of candidates from all holds one of the leading b + 1, where b controls reach
        `best`: (1 + b) / (n_controls + 1) for one candidate. NaN without controls or if `best` is NaN.
    """
    n = len(controls)
    if n == 0 or np.isnan(best):
        return float("nan")
    reached = int((controls >= best - SAME * abs(best)).sum())
    missed = Fraction(comb(n, reached + 1), comb(n + candidates, reached + 1))
    return float(1 - missed)
