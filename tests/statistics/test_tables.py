"""Corrections, power, specificity, dose and the summary over models against statsmodels, published values and plain loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from emo_mlflow.statistics import (
    condition_effects,
    corrected,
    detectable_d,
    power,
    prompt_slopes,
    prompt_spearman,
    random_effects,
    required_n,
    specific_effects,
)


def test_corrections_of_benjamini_and_hochberg_s_own_example() -> None:
    """Guards against swapped methods: of these 15, the paper (1995, section 3.2) rejects 3 by Bonferroni and 4 by its procedure."""
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1.0,
    ]
    table = corrected(p, ["all"] * 15)
    assert (table.drop(columns="family_size") < 0.05).sum().to_dict() == {"p_bonferroni": 3, "p_holm": 3, "p_bh": 4}


@pytest.mark.parametrize("seed", [0, 1])
def test_corrections_equal_statsmodels(seed: int) -> None:
    """Guards against errors in the order of steps: ties, zeros and ones among 200 values."""
    p = np.clip(np.random.default_rng(seed).normal(0.3, 0.4, 200).round(2), 0, 1)
    table = corrected(p, [0] * 200)
    for column, method in (("p_bonferroni", "bonferroni"), ("p_holm", "holm"), ("p_bh", "fdr_bh")):
        assert table[column].to_numpy() == pytest.approx(multipletests(p, method=method)[1])


@given(
    p=st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=30),
    families=st.lists(st.sampled_from("ab"), min_size=30, max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_corrections_stay_within_their_family(p: list[float], families: list[str]) -> None:
    """Guards against tests that could not be computed counting towards the family, and families that leak into each other."""
    values, names = np.array(p, float), np.array(families[: len(p)], object)
    table = corrected(values, list(names))
    columns = ["p_bonferroni", "p_holm", "p_bh"]
    for family in "ab":
        own = (names == family) & ~np.isnan(values)
        assert (table.loc[names == family, "family_size"] == own.sum()).all()
        alone = corrected(values[own], [0] * own.sum())
        assert table.loc[own, columns].to_numpy() == pytest.approx(alone[columns].to_numpy())
    assert table.loc[np.isnan(values), columns].isna().all(axis=None)


def integrated_power(d: float, n: int, alpha: float) -> float:
    """The power of the t test by its definition: the normal's tails, integrated over the sample's standard deviation."""
    df, shift = n - 1, d * np.sqrt(n)
    critical = stats.t.isf(alpha / 2, df)

    def density(s: float) -> float:
        tails = stats.norm.sf(critical * s - shift) + stats.norm.cdf(-critical * s - shift)
        return float(tails * stats.chi.pdf(s * np.sqrt(df), df) * np.sqrt(df))

    edges = stats.chi.ppf([1e-12, 0.5, 1 - 1e-12], df) / np.sqrt(df)
    return sum(integrate.quad(density, a, b, limit=500)[0] for a, b in pairwise(edges))


@pytest.mark.parametrize(
    ("d", "n", "alpha"),
    [
        (0.5, 34, 0.05),
        (0.2, 778, 0.05 / 18798),
        (0.5, 134, 0.05 / 18798),
        (3.0, 16, 1e-6),
        (0.0, 9, 0.05),
        (1.2, 8, 0.05),
    ],
)
def test_power_equals_its_definition(d: float, n: int, alpha: float) -> None:
    """Guards against the non-central t of scipy and statsmodels, which is NaN or 500 where 778 pairs are needed."""
    assert float(power(d, n, alpha)) == pytest.approx(integrated_power(d, n, alpha), rel=1e-5)


def test_required_n_is_the_published_one() -> None:
    """Guards against one-sided or unpaired formulas: G*Power 3.1 gives 199, 90 and 34 pairs for d_z = 0.2, 0.3, 0.5."""
    assert [required_n(d, 0.05) for d in (0.2, 0.3, 0.5)] == [199, 90, 34]
    for d in (0.2, 0.3, 0.5):
        expected = TTestPower().solve_power(effect_size=d, power=0.9, alpha=0.01)
        assert required_n(d, 0.01, 0.9) == int(np.ceil(expected))
    with pytest.raises(ValueError, match="no n up to"):
        required_n(0.0, 0.05)


@pytest.mark.parametrize("n", [2, 3, 8, 225])
def test_the_detectable_effect_has_the_target_power(n: int) -> None:
    """Guards against a search that stops early."""
    d = detectable_d(n, 0.05)
    assert float(power(d, n, 0.05)) == pytest.approx(0.8, abs=1e-4)
    assert np.isnan(detectable_d(1, 0.05)) and np.isnan(detectable_d(2, 1e-9)) and np.isnan(power(0.5, 1, 0.05))


def test_random_effects_of_the_published_meta_analysis() -> None:
    """Guards against errors that two tests of one's own would share: the 13 trials of the BCG vaccine (Colditz et al. 1994; log risk
    ratios), for which R's metafor gives tau2 = 0.3088, mean -0.7141, Q = 152.2330 and I2 = 92.12% by DerSimonian and Laird."""
    treated = np.array(
        [
            [4, 119],
            [6, 300],
            [3, 228],
            [62, 13536],
            [33, 5036],
            [180, 1361],
            [8, 2537],
            [505, 87886],
            [29, 7470],
            [17, 1699],
            [186, 50448],
            [5, 2493],
            [27, 16886],
        ]
    )
    control = np.array(
        [
            [11, 128],
            [29, 274],
            [11, 209],
            [248, 12619],
            [47, 5761],
            [372, 1079],
            [10, 619],
            [499, 87892],
            [45, 7232],
            [65, 1600],
            [141, 27197],
            [3, 2338],
            [29, 17825],
        ]
    )
    totals = treated.sum(axis=1), control.sum(axis=1)
    estimates = np.log(treated[:, 0] / totals[0]) - np.log(control[:, 0] / totals[1])
    variances = 1 / treated[:, 0] - 1 / totals[0] + 1 / control[:, 0] - 1 / totals[1]
    row = random_effects(estimates[:, None], variances[:, None]).iloc[0]
    assert [row["tau2"], row["estimate"], row["q"], row["i2"]] == pytest.approx(
        [0.3088, -0.7141, 152.2330, 0.9212], abs=6e-5
    )


@given(seed=st.integers(0, 2**32), k=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_random_effects_equal_statsmodels(seed: int, k: int) -> None:
    """Guards against a model that is missing in one test changing another, and against the wrong standard error."""
    rng = np.random.default_rng(seed)
    estimates, variances = rng.normal(size=(k, 4)), rng.uniform(0.05, 1, size=(k, 4))
    holed = np.vstack([estimates, rng.normal(size=(1, 4))]), np.vstack([variances, [[0.5, np.nan, 0.0, 0.1]]])
    holed[0][-1, 3] = np.nan
    estimates = np.vstack([estimates, holed[0][-1:]])
    table = random_effects(*holed)
    for test in range(4):
        models = slice(None) if test == 0 else slice(None, k)
        expected = combine_effects(estimates[models, test], holed[1][models, test], method_re="dl", use_t=True)
        assert table.loc[test, "tau2"] == pytest.approx(max(0.0, expected.tau2))
        assert table.loc[test, "p_heterogeneity"] == pytest.approx(expected.test_homogeneity().pvalue)
        if expected.tau2 > 0:  # statsmodels goes on with a negative variance
            plain = np.sqrt(1 / (1 / (holed[1][models, test] + expected.tau2)).sum())
            assert table.loc[test, "estimate"] == pytest.approx(expected.mean_effect_re)
            assert table.loc[test, "se"] == pytest.approx(max(plain, expected.sd_eff_w_re_hksj))
        else:
            assert table.loc[test, "estimate"] == pytest.approx(expected.mean_effect_fe)


def test_one_model_has_no_heterogeneity() -> None:
    """Guards against infinite intervals from no degrees of freedom."""
    row = random_effects(np.array([[0.4]]), np.array([[0.04]])).iloc[0]
    assert (row["k"], row["estimate"], row["se"]) == (1, pytest.approx(0.4), pytest.approx(0.2))
    assert row[["low", "high", "p", "tau2", "q", "p_heterogeneity", "i2"]].isna().all()


def test_specific_effects_by_plain_loops() -> None:
    """Guards against draws pooled as samples, prompts dropped from one side only, and ties that do not count."""
    rng = np.random.default_rng(0)
    own, draws = rng.normal(0.5, 1, size=(9, 4)), rng.normal(size=(6, 9, 4))
    draws[2, 4, 1] = np.nan
    own[3, 2] = np.nan
    draws[1, :, 3] = -own[:, 3]
    table = specific_effects(own, draws)
    for test, row in table.iterrows():
        keep = ~np.isnan(own[:, test]) & ~np.isnan(draws[:, :, test]).any(axis=0)
        means = [float(np.mean(draw[keep, test])) for draw in draws]
        effect = float(np.mean(own[keep, test]))
        assert (row["n"], row["n_draws"]) == (keep.sum(), 6)
        assert row["p"] == pytest.approx((1 + sum(abs(mean) >= abs(effect) - 1e-9 for mean in means)) / 7)
        assert row["z"] == pytest.approx((effect - np.mean(means)) / np.std(means, ddof=1))
        assert row["specific"] == pytest.approx(effect - np.mean(means))
    assert table.loc[3, "p"] >= 2 / 7


def test_few_draws_have_no_interval() -> None:
    """Guards against intervals from a single draw, and p-values without any."""
    own = np.random.default_rng(1).normal(size=(5, 2))
    one = specific_effects(own, own[None] + 1)
    assert one["p"].tolist() == [1.0, 1.0] or (one["p"] == 0.5).any()
    assert one[["z", "specific_low", "specific_high", "draws_sd"]].isna().all(axis=None)
    none = specific_effects(own, np.empty((0, 5, 2)))
    assert none[["p", "z", "specific", "smallest_p"]].isna().all(axis=None) and none["effect"].notna().all()


def test_slopes_and_rank_correlations_equal_scipy() -> None:
    """Guards against a slope through the origin, and ranks over the wrong axis."""
    rng = np.random.default_rng(2)
    alphas = np.array([0.0, 0.5, 1.0, 4.0])
    responses = rng.normal(size=(4, 6, 3)).round(1)
    responses[:, 2, 1] = 0.7
    responses[1, 4, 0] = np.nan
    slopes, rhos = prompt_slopes(alphas, responses), prompt_spearman(alphas, responses)
    for prompt in range(6):
        for test in range(3):
            y = responses[:, prompt, test]
            if np.isnan(y).any():
                assert np.isnan(slopes[prompt, test]) and np.isnan(rhos[prompt, test])
                continue
            assert slopes[prompt, test] == pytest.approx(stats.linregress(alphas, y).slope)
            expected = 0.0 if np.ptp(y) == 0 else stats.spearmanr(alphas, y).statistic
            assert rhos[prompt, test] == pytest.approx(expected)


def sweep_values(seed: int, samples: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of four conditions, five prompts and two metrics, in random order, with holes."""
    rng = np.random.default_rng(seed)
    keys = [(c, f"p{p}", s) for c in ("base", "a", "b", "c") for p in range(5) for s in range(samples)]
    values = pd.DataFrame(keys, columns=["condition_id", "prompt_id", "sample"])
    values["x.one"] = rng.random(len(values)).astype(np.float32)
    values["x.two"] = rng.random(len(values))
    values.loc[rng.choice(len(values), 3, replace=False), "x.one"] = np.nan
    values = values.drop(index=rng.choice(len(values), 2, replace=False)).sample(frac=1, random_state=seed)
    conditions = pd.DataFrame(
        {"condition_id": ["a", "base", "b", "c"], "kind": ["emotion", "baseline", "random", "emotion"]}
    )
    return values, conditions


@given(seed=st.integers(0, 2**31), samples=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_condition_effects_by_plain_loops(seed: int, samples: int) -> None:
    """Guards against pairing by row order, samples counted as units, and NaNs that drop one arm only."""
    values, conditions = sweep_values(seed, samples)
    cells = values.set_index(["condition_id", "prompt_id", "sample"])
    table = condition_effects(values, conditions)
    assert table["condition_id"].tolist() == ["a", "a", "b", "b", "c", "c"]
    for row in table.itertuples():
        before, after = [], []
        for prompt in [f"p{p}" for p in range(5)]:
            pairs = [
                (cells[row.metric].get(("base", prompt, s)), cells[row.metric].get((row.condition_id, prompt, s)))
                for s in range(samples)
            ]
            pairs = [pair for pair in pairs if all(v is not None and not np.isnan(v) for v in pair)]
            if pairs:
                before.append(np.mean([pair[0] for pair in pairs], dtype=float))
                after.append(np.mean([pair[1] for pair in pairs], dtype=float))
        difference = np.subtract(after, before)
        assert row.n == len(difference)
        expected = [np.mean(before), np.mean(after), difference.mean()] if row.n else [np.nan] * 3
        assert [row.mean_baseline, row.mean_patched, row.mean_diff] == pytest.approx(expected, nan_ok=True)
        assert row.d_z == pytest.approx(
            difference.mean() / difference.std(ddof=1) if row.n > 1 else np.nan, nan_ok=True
        )


def test_condition_effects_are_never_infinite() -> None:
    """Guards against d = -548: float32 scores that all rise by 0.1 differ by rounding alone, also beside a float64 column."""
    baseline = np.array([0.3, 0.1, 0.7, 0.55], np.float32)
    values = pd.DataFrame({"condition_id": ["b"] * 4 + ["c"] * 4, "prompt_id": list("wxyz") * 2, "sample": 0})
    values["s.x"] = np.concatenate([baseline, baseline + np.float32(0.1)])
    values["fluency.nll"] = values["s.x"].astype(float) ** 2
    conditions = pd.DataFrame({"condition_id": ["b", "c", "d"], "kind": ["baseline", "emotion", "random"]})
    table = condition_effects(values, conditions).set_index(["condition_id", "metric"])["d_z"]
    assert np.isnan(table["c", "s.x"]) and np.isfinite(table["c", "fluency.nll"])
    assert np.isnan(table["d", "s.x"])


@pytest.mark.parametrize("change", ["two baselines", "no baseline", "unknown condition", "cell twice"])
def test_condition_effects_refuse_tables_that_do_not_fit(change: str) -> None:
    """Guards against a silent choice of one of two baselines, or of one of two values of a cell."""
    values, conditions = sweep_values(0, 1)
    if change == "two baselines":
        conditions = conditions.assign(kind="baseline")
    elif change == "no baseline":
        conditions = conditions.assign(kind="emotion")
    elif change == "unknown condition":
        conditions = conditions[conditions["condition_id"] != "c"]
    else:
        values = pd.concat([values, values.iloc[[0]]])
    with pytest.raises(ValueError, match="baseline|unknown|more than once"):
        condition_effects(values, conditions)
