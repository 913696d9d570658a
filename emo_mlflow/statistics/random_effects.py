"""What several models' effects have in common, and how much they differ: a random-effects summary."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from emo_mlflow.statistics.moments import LEVEL, Floats, divide


def random_effects(estimates: Floats, variances: Floats) -> pd.DataFrame:
    """Random-effects summary of k models' estimates, a row per test.

    Args:
        estimates, variances: [k_models, n_tests]; NaN or a variance of 0 leaves that model out of that test.

    Returns:
        k (models); estimate, se, low, high (95%), p: mean over models with weights 1 / (variance + tau2), its interval
        by the modified method of Hartung and Knapp: k - 1 degrees of freedom, and their factor on the standard error not
        below 1 (Knapp and Hartung 2003; `test="adhoc"` in R's metafor); tau2 (DerSimonian and Laird 1986); q and
        p_heterogeneity (Cochran); i2, the share of variation between models (Higgins and Thompson 2002). All but estimate and
        se are NaN for one model.

    Weights take the variances as known. For scores near 0 a model that shows little also varies little, so that it weighs
    more, and with few prompts the mean is too low.
    """
    present = ~np.isnan(estimates) & (variances > 0)
    y = np.where(present, estimates, 0.0).astype(float)
    v = np.where(present, variances, 1.0).astype(float)
    k = present.sum(axis=0)
    df = k - 1
    fixed = present / v
    total = fixed.sum(axis=0)
    q = (fixed * (y - divide((fixed * y).sum(axis=0), total)) ** 2).sum(axis=0)
    tau2 = np.maximum(0.0, divide(q - df, total - divide((fixed**2).sum(axis=0), total)))
    weights = present / (v + np.where(np.isnan(tau2), 0.0, tau2))
    estimate = divide((weights * y).sum(axis=0), weights.sum(axis=0))
    scatter = divide((weights * (y - estimate) ** 2).sum(axis=0), df)
    se = np.sqrt(divide(np.where(np.isnan(scatter), 1.0, np.maximum(1.0, scatter)), weights.sum(axis=0)))
    several = np.where(k > 1, 1.0, np.nan)
    half = several * stats.t.ppf((1 + LEVEL) / 2, np.maximum(df, 1)) * se
    return pd.DataFrame(
        {
            "k": k,
            "estimate": estimate,
            "se": se,
            "low": estimate - half,
            "high": estimate + half,
            "p": several * 2 * stats.t.sf(np.abs(divide(estimate, se)), np.maximum(df, 1)),
            "tau2": several * tau2,
            "q": several * q,
            "p_heterogeneity": several * stats.chi2.sf(q, np.maximum(df, 1)),
            "i2": several * np.maximum(0.0, np.where(q > 0, divide(q - df, q), 0.0)),
        }
    )
