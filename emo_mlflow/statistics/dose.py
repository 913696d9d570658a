"""How a score moves with the dose: a slope and a rank correlation for every prompt."""

from __future__ import annotations

import numpy as np
from scipy import stats

from emo_mlflow.statistics.moments import Floats, divide


def prompt_slopes(alphas: Floats, responses: Floats) -> Floats:
    """Least-squares slope of each prompt's score on alpha, in score per unit of alpha.

    Args:
        alphas: [n_alphas], at least two distinct.
        responses: [n_alphas, n_prompts, n_tests]; a prompt that lacks one alpha is NaN.

    Returns:
        [n_prompts, n_tests]. Their mean is the slope of the mean response.
    """
    centred = alphas - alphas.mean()
    return np.tensordot(centred, responses.astype(float), axes=1) / (centred**2).sum()


def prompt_spearman(alphas: Floats, responses: Floats) -> Floats:
    """Spearman's rank correlation of each prompt's score with alpha, shapes as in `prompt_slopes`.

    NaN for a prompt whose score is the same at every alpha: it has no ranks to correlate.
    """
    missing = np.isnan(responses).any(axis=0)
    x, y = stats.rankdata(alphas), stats.rankdata(responses, axis=0)
    x, y = x - x.mean(), y - y.mean(axis=0)
    rho = divide(np.tensordot(x, y, axes=1), np.sqrt((x**2).sum() * (y**2).sum(axis=0)))
    return np.where(missing, np.nan, rho)
