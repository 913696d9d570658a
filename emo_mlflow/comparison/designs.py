"""Power of the design: what it could find, and what it would need to find more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import OWN, SIGNIFICANT, significant
from emo_mlflow.comparison.sources import Source
from emo_mlflow.statistics import detectable_d, power, required_n
from emo_mlflow.statistics.power import TARGET
from emo_mlflow.statistics.signs import smallest_flip_p

TARGETS = (0.2, 0.3, 0.5)


def power_requirements(effects: pd.DataFrame) -> pd.DataFrame:
    """A row per model, target effect and level: plain 0.05, and 0.05 over the family of the emotions' own labels.

    It is that of the paired t test, which sign flips have nearly where they can reach the level at all; where so few prompts cannot,
    the power is 0.

    Returns:
        model, n (prompts), correction ("none" or "bonferroni"), tests, alpha, target_effect_size, target_power,
        required_n_effective (pairs that the target needs), power (of n pairs for the target), smallest_detectable_d
        (of n; NaN if there is none).
    """
    own = effects[effects[OWN]] if effects[OWN].any() else effects
    tests = int(own["family_size"].max())
    rows: list[dict[str, Any]] = []
    for model, table in effects.groupby("model", sort=False):
        n = int(table["n"].max())
        for correction, count in (("none", 1), ("bonferroni", max(1, tests))):
            alpha = SIGNIFICANT / count
            key: dict[str, Any] = {"model": model, "n": n, "correction": correction, "tests": count, "alpha": alpha}
            smallest = smallest_d(n, alpha)
            for d in TARGETS:
                found = {
                    "required_n_effective": max(required_n(d, alpha), flips_needed(alpha)),
                    "power": float(power(d, n, alpha)) if n >= flips_needed(alpha) else 0.0,
                    "smallest_detectable_d": smallest,
                }
                rows.append({**key, "target_effect_size": d, "target_power": TARGET, **found})
    return pd.DataFrame(rows)


def flips_needed(alpha: float) -> int:
    """The fewest prompts whose sign flips can give a two-sided p of alpha."""
    n = 1
    while smallest_flip_p(n) > alpha:
        n += 1
    return n


def smallest_d(n: int, alpha: float) -> float:
    """The smallest true d_z that n prompts find at level alpha four times in five; NaN if none."""
    return detectable_d(n, alpha) if n >= flips_needed(alpha) else float("nan")


def power_analysis(effects: pd.DataFrame, sources: tuple[Source, ...]) -> pd.DataFrame:
    """The first system's power_analysis.csv: a row per test under its column names, and what it lacked.

    `p_value` is that of sign flips, which the corrections are of. `power` is its post-hoc power, at the d_z observed and 0.05: it
    says no more than the p-value does (Hoenig and Heisey 2001). `power_d02`, `power_d03`, `power_d05` and
    `smallest_detectable_d` are the design's own, at 0.05 over the family.
    """
    n = effects["n"].to_numpy()
    alpha = SIGNIFICANT / np.maximum(1, effects["family_size"].to_numpy())
    profiles = {source.label: source.config["profile"] for source in sources}
    phases = {source.label: source.phase for source in sources}
    places = effects["layer"].astype(str) + "." + effects["head"].astype(str)
    smallest = {key: smallest_d(*key) for key in set(zip(n.tolist(), alpha.tolist(), strict=True))}
    columns: dict[str, Any] = {
        "profile": effects["model"].map(profiles),
        "phase": effects["model"].map(phases),
        "model_name": effects["model"],
        "emotion": effects["emotion"],
        "layer": effects["layer"],
        "head": effects["head"],
        "head_spec": places.where(effects["head"].notna()),
        "alpha": effects["alpha"],
        "comparison": "baseline",
        "metric_name": effects["metric"],
        "paired": True,
        "n_baseline": n,
        "n_patched": n,
        "n_effective": n,
        "mean_baseline": effects["mean_baseline"],
        "mean_patched": effects["mean_patched"],
        "std_baseline": effects["sd_baseline"],
        "std_patched": effects["sd_patched"],
        "mean_diff": effects["mean_diff"],
        "cohen_d": effects["d_z"],
        "ci_lower": effects["diff_low"],
        "ci_upper": effects["diff_high"],
        "effect_size_ci_lower": effects["d_low"],
        "effect_size_ci_upper": effects["d_high"],
        "t_statistic": effects["t"],
        "p_value": effects["p_permutation"],
        "p_value_bonferroni": effects["p_bonferroni"],
        "p_value_fdr": effects["p_bh"],
        "significant_bonferroni": significant(effects["p_bonferroni"]),
        "significant_fdr": significant(effects["p_bh"]),
        "power": power(effects["d_z"].to_numpy(), n, SIGNIFICANT),
        **{f"power_d{d:.1f}".replace(".", ""): power(d, n, alpha) for d in TARGETS},
        "smallest_detectable_d": [smallest[key] for key in zip(n.tolist(), alpha.tolist(), strict=True)],
    }
    return pd.DataFrame(columns)
