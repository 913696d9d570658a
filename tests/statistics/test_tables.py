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
    grid_mean,
    power,
    prompt_slopes,
    prompt_spearman,
    random_effects,
    required_n,
    searched_p,
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
    # metafor 3.8, rma(yi, vi, method = "DL", test = "adhoc")
    interval = [row["se"], row["low"], row["high"], row["p"]]
    assert interval == pytest.approx([0.1806966283, -1.107821354, -0.32041309, 0.001920766767], rel=1e-8)


def test_models_that_agree_by_chance_do_not_shorten_the_interval() -> None:
    """Guards against the unmodified method, whose interval of these four is 0.28 to 0.32 (metafor's test = "knha"); adhoc's is R's."""
    estimates, variances = np.array([0.30, 0.32, 0.29, 0.31]), np.array([0.04, 0.05, 0.03, 0.06])
    row = random_effects(estimates[:, None], variances[:, None]).iloc[0]
    values = [row["estimate"], row["se"], row["low"], row["high"], row["p"]]
    assert values == pytest.approx([0.3024561404, 0.1025978352, -0.02405596124, 0.6289682419, 0.06012244605], rel=1e-8)


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
    """Guards against draws pooled as samples, prompts dropped from one side only, ties that do not count, and sizes about 0 where a side
    is expected."""
    rng = np.random.default_rng(0)
    own, draws = rng.normal(0.5, 1, size=(9, 6)), rng.normal(size=(6, 9, 6))
    draws[2, 4, 1] = np.nan
    own[3, 2] = np.nan
    draws[1, :, 3] = own[:, 3]
    draws[4, :, 5] = np.nan
    signs = [1, -1, 0, 1, 0, 1]
    table = specific_effects(own, draws, signs)
    for test, row in table.iterrows():
        there = [draw for draw in draws[:, :, test] if not np.isnan(draw).all()]
        keep = ~np.isnan(own[:, test]) & ~np.isnan(there).any(axis=0)
        means = [float(np.mean(draw[keep])) for draw in there]
        effect = float(np.mean(own[keep, test]))
        assert (row["n"], row["n_draws"]) == (keep.sum(), len(there))
        up, down = (1 + sum(sign * mean >= sign * effect - 1e-9 for mean in means) for sign in (1, -1))
        expected = {1: up, -1: down, 0: min(2 * up, 2 * down, 1 + len(there))}[signs[test]] / (len(there) + 1)
        assert row["p"] == pytest.approx(expected)
        assert row["smallest_p"] == pytest.approx((2 if signs[test] == 0 else 1) / (len(there) + 1))
        assert row["z"] == pytest.approx((effect - np.mean(means)) / np.std(means, ddof=1))
        assert row["beyond_mean"] == pytest.approx(effect - np.mean(means))
        assert (row["draws_min"], row["draws_max"]) == pytest.approx((min(means), max(means)))
        assert row["reason"] == "" and row["beyond_mean_low"] < row["beyond_mean"] < row["beyond_mean_high"]
    assert table["n_draws"].tolist() == [6, 6, 6, 6, 6, 5] and table.loc[3, "p"] >= 2 / 7
    assert table["alternative"].tolist() == ["greater", "less", "two-sided", "greater", "two-sided", "greater"]


def test_an_effect_is_placed_among_draws_that_all_shift_one_way() -> None:
    """Guards against p = 1 for an effect of +0.012 among draws of -0.020 +- 0.004, because they are larger in size."""
    draws = np.repeat(np.linspace(-0.024, -0.016, 19)[:, None, None], 4, axis=1)
    row = specific_effects(np.full((4, 1), 0.012), draws, 1).iloc[0]
    assert row["p"] == 1 / 20 and row["z"] > 7
    assert specific_effects(np.full((4, 1), -0.03), draws, 1)["p"][0] == 1.0
    assert specific_effects(np.full((4, 1), 0.012), draws)["p"][0] == 2 / 20


def test_few_draws_have_no_interval() -> None:
    """Guards against intervals from a single draw, and p-values without any."""
    own = np.random.default_rng(1).normal(size=(5, 2))
    one = specific_effects(own, own[None] + 1, 1)
    assert one["p"].tolist() == [1.0, 1.0] and one["draws_min"].tolist() == one["draws_max"].tolist()
    assert one[["z", "beyond_mean_low", "beyond_mean_high", "draws_sd"]].isna().all(axis=None)
    assert one["reason"].tolist() == ["fewer than two prompts or draws: no interval"] * 2
    none = specific_effects(own, np.empty((0, 5, 2)))
    missing = ["p", "z", "beyond_mean", "smallest_p", "draws_mean", "draws_min", "draws_max"]
    assert none[missing].isna().all(axis=None) and none["effect"].notna().all()
    assert none["reason"].tolist() == ["no random directions"] * 2
    absent = specific_effects(np.full((5, 1), np.nan), own[None, :, :1])
    assert absent["reason"].tolist() == ["no prompts"] and absent["p"].isna().all()


def test_the_best_of_several_candidates_is_placed_as_a_random_choice_would_be() -> None:
    """Guards against the best of three heads being compared with single control heads as if it were one. R: 1 - choose(7, 2) /
    choose(10, 2) = phyper(0, 2, 8, 3, lower.tail = FALSE) = 0.533333333333."""
    controls = np.array([0.9, 0.1, 0.2, 0.3, -np.inf, 0.0, -0.2])
    assert searched_p(0.5, controls, 3) == pytest.approx(0.533333333333)
    assert searched_p(0.5, controls) == 2 / 8 and searched_p(0.9, controls) == 2 / 8 and searched_p(1.0, controls) == 1 / 8
    assert searched_p(-np.inf, controls, 3) == 1.0
    assert np.isnan(searched_p(0.5, np.array([]))) and np.isnan(searched_p(np.nan, controls))


def test_the_interval_of_a_grid_equals_r() -> None:
    """Guards against pairs that share a layer counted as independent. R: mean squares of anova(lm(y ~ row + column)), the variance of
    the mean by crossed random effects, and Satterthwaite's degrees of freedom, 3.137."""
    y = np.array([[0.31, 0.28, 0.22, 0.35], [0.18, 0.21, 0.11, 0.25], [0.40, 0.33, 0.30, 0.46]])
    assert grid_mean(y) == pytest.approx((0.283333333333, 0.094526156301, 0.472140510366), rel=1e-9)
    assert np.isnan(grid_mean(y[:1])[1:]).all() and grid_mean(y[:1])[0] == pytest.approx(y[0].mean())


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
            if np.ptp(y) == 0:
                assert np.isnan(rhos[prompt, test])  # as R's cor(method = "spearman") says of a constant
                continue
            assert rhos[prompt, test] == pytest.approx(stats.spearmanr(alphas, y).statistic)


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
