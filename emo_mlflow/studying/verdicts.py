"""What a study's tests say, by emotion and by control: a verdict in the words that its tests support, and the figures behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from emo_mlflow.statistics.corrections import holm as holm_adjusted
from emo_mlflow.statistics.margins import Interval, Share, harmed, mean_interval
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.statistics.sequential import Step
from emo_mlflow.statistics.signs import sign_flip_p
from emo_mlflow.studying.procedure import Bank, Tests
from emo_mlflow.studying.protocol import BASELINE, LEVEL, Arm, Design, Place
from emo_mlflow.types import Control

HARM = 0.01  # a fall of the label by less is none: scores of a text differ by as much for a comma
Verdict = Literal["specific", "steers", "not shown", "untested"]


@dataclass(frozen=True)
class Answer:
    """One emotion's answer.

    Attributes:
        verdict: `specific`: by the exact test its label does better than under random directions of every control, corrected over the emotions;
            `rises` says whether it is shown to rise against the baseline too.
            `steers`: its label rises against the baseline (Holm over emotions, an interval above 0), not shown to be specific. `not shown`: neither.
            `untested`: an earlier emotion of the sequence was not shown.
        effect: mean change of the own label from the baseline, with Student's interval.
        baseline, patched: mean label without and with the direction.
        p_baseline: one-sided, by sign flips; `p_baseline_holm` is corrected over the emotions.
        p: against random directions, the largest of the controls that count.
        draws: random directions that it met, of the control that decided.
        harmed: share of prompts on which the label fell by more than `HARM`.
        broken, broken_baseline: share of texts that are broken.
    """

    emotion: str
    metric: str
    verdict: Verdict
    effect: Interval
    baseline: float
    patched: float
    p_baseline: float
    p_baseline_holm: float
    p: float
    draws: int
    harmed: Share
    broken: float
    broken_baseline: float
    place: Place
    second: Interval | None = None
    second_harmed: Share | None = None

    @property
    def rises(self) -> bool:
        """Whether the label is shown to rise against the baseline, corrected over the emotions."""
        return rise_is_shown(self.effect, self.p_baseline_holm)



def answers(design: Design, bank: Bank, tests: Tests) -> tuple[Answer, ...]:
    """An answer per emotion, in the design's order."""
    differences = {place.emotion: own_changes(bank, place.emotion) for place in design.places}
    single = {emotion: _one_sided(values, design.seed) for emotion, values in differences.items()}
    adjusted = dict(zip(single, holm_adjusted(np.array(list(single.values()))), strict=True))
    found = []
    for place in design.places:
        emotion = place.emotion
        effect, step = mean_interval(differences[emotion]), tests.steps[emotion]
        own, base = (np.atleast_2d(bank.scores(arm, emotion)) for arm in (Arm(emotion), BASELINE))
        found.append(
            Answer(
                emotion=emotion,
                metric=place.metric,
                verdict=verdict_of(step, effect, float(adjusted[emotion])),
                effect=effect,
                baseline=float(np.nanmean(base[0])),
                patched=float(np.nanmean(own, axis=1).max()),
                p_baseline=single[emotion],
                p_baseline_holm=float(adjusted[emotion]),
                p=step.p,
                draws=step.draws,
                harmed=harmed(differences[emotion], HARM),
                broken=float(np.nanmean(bank.broken(Arm(emotion)))),
                broken_baseline=float(np.nanmean(bank.broken(BASELINE))),
                place=place,
            )
        )
    return tuple(found)


def rise_is_shown(effect: Interval, p_baseline: float, level: float = LEVEL) -> bool:
    """Whether a label is shown to rise against the baseline: the corrected test rejects, and the interval is above 0."""
    return p_baseline <= level and effect.low > 0


def verdict_of(step: Step, effect: Interval, p_baseline: float, level: float = LEVEL) -> Verdict:
    """The verdict that the tests support; a rise whose interval reaches 0 is not called one."""
    if step.decision == "rejected" and effect.mean > 0:
        return "specific"
    if rise_is_shown(effect, p_baseline, level):
        return "steers"
    return "untested" if step.decision == "untested" else "not shown"


def own_changes(bank: Bank, emotion: str) -> Floats:
    """Change of the own label by prompt, at the depth of the largest mean."""
    own, base = np.atleast_2d(bank.scores(Arm(emotion), emotion)), np.atleast_2d(bank.scores(BASELINE, emotion))[0]
    best = int(np.nan_to_num(np.nanmean(own, axis=1), nan=-np.inf).argmax())
    return own[best] - base


def _one_sided(differences: Floats, seed: int) -> float:
    """p of a rise, by sign flips; the two-sided test's half on the side of the mean."""
    values = differences[~np.isnan(differences)]
    if len(values) < 2 or not values.any():
        return float("nan") if len(values) < 2 else 1.0
    two_sided = float(sign_flip_p(values[:, None], seed)[0])
    return two_sided / 2 if values.mean() > 0 else 1 - two_sided / 2


def rung_table(design: Design, bank: Bank, tests: Tests, found: Sequence[Answer]) -> pd.DataFrame:
    """verdicts.parquet: a row per emotion and control, the other emotions' directions among them.

    Columns: emotion, metric, verdict, layer, alpha, alpha_unit; control, draws, reached, p, void, broken (share of the control's texts), draw_mean,
    draw_low, draw_high (the range of the draws' mean changes); effect, low, high, n, p_baseline, p_baseline_holm, harmed, harmed_low, harmed_high;
    p_all (against all controls that count: the largest p), broken_steered and broken_baseline (shares of texts with and without the direction).
    For `other: NAME` there are no draws: p is that of the paired one-sided t test of own minus other.
    """
    rows = []
    for answer in found:
        common = _common(answer)
        for control in design.controls:
            rows.append(common | _rung(design, answer.emotion, control, bank, tests))
        for other in (item for item in found if item.emotion != answer.emotion):
            rows.append(common | _other(answer.emotion, other.emotion, bank, design.seed))
    return pd.DataFrame(rows)


def _common(answer: Answer) -> dict[str, object]:
    return {
        "emotion": answer.emotion,
        "metric": answer.metric,
        "verdict": answer.verdict,
        "layer": ",".join(map(str, answer.place.layers)),
        "alpha": answer.place.alpha,
        "alpha_unit": answer.place.alpha_unit,
        "n": answer.effect.n,
        "effect": answer.effect.mean,
        "low": answer.effect.low,
        "high": answer.effect.high,
        "p_baseline": answer.p_baseline,
        "p_baseline_holm": answer.p_baseline_holm,
        "harmed": answer.harmed.share,
        "harmed_low": answer.harmed.low,
        "harmed_high": answer.harmed.high,
        "p_all": answer.p,
        "broken_steered": answer.broken,
        "broken_baseline": answer.broken_baseline,
    }


def _rung(design: Design, emotion: str, control: Control, bank: Bank, tests: Tests) -> dict[str, object]:
    test = tests.rungs[emotion][control]
    changes = draw_changes(design, emotion, control, test.draws, bank)
    broken = [bank.broken(design.arm(emotion, control, draw)) for draw in range(test.draws)]
    return {
        "control": control,
        "draws": test.draws,
        "reached": test.reached,
        "p": test.p,
        "void": control in tests.void[emotion],
        "broken": float(np.nanmean(np.concatenate(broken))) if broken else np.nan,
        "draw_mean": float(changes.mean()) if len(changes) else np.nan,
        "draw_low": float(changes.min()) if len(changes) else np.nan,
        "draw_high": float(changes.max()) if len(changes) else np.nan,
    }


def draw_changes(design: Design, emotion: str, control: Control, draws: int, bank: Bank) -> Floats:
    """Mean change of an emotion's label under each random direction, [draws], on the prompts that it has continued."""
    base = np.atleast_2d(bank.scores(BASELINE, emotion))[0]
    found = []
    for draw in range(draws):
        scores = np.atleast_2d(bank.scores(design.arm(emotion, control, draw), emotion))
        found.append(np.nanmean(scores - base[: scores.shape[1]], axis=1).max())
    return np.array(found)


def _other(emotion: str, other: str, bank: Bank, seed: int) -> dict[str, object]:
    """Own direction against another emotion's, on the own label."""
    base = np.atleast_2d(bank.scores(BASELINE, emotion))[0]
    theirs = np.atleast_2d(bank.scores(Arm(other), emotion))[0] - base
    change = float(np.nanmean(theirs))
    return {
        "control": f"other: {other}",
        "draws": 0,
        "reached": False,
        "p": _one_sided(own_changes(bank, emotion) - theirs, seed),
        "void": False,
        "broken": float(np.nanmean(bank.broken(Arm(other)))),
        "draw_mean": change,
        "draw_low": change,
        "draw_high": change,
    }


def own_claim(table: pd.DataFrame, emotion: str, level: float = LEVEL) -> bool:
    """Whether a direction raises its emotion's label more than every other emotion's direction does: the largest p counts."""
    rows = table[(table["emotion"] == emotion) & table["control"].str.startswith("other: ")]
    return bool(len(rows) and (rows["p"] <= level).all())


def verdict_metrics(found: Sequence[Answer]) -> Mapping[str, float]:
    """Numbers of a run: `verdict.<emotion>.effect`, `.low`, `.high`, `.p`, `.draws`, `.harmed`, `.broken`."""
    metrics: dict[str, float] = {}
    for answer in found:
        values = {
            "effect": answer.effect.mean,
            "low": answer.effect.low,
            "high": answer.effect.high,
            "p": answer.p,
            "draws": float(answer.draws),
            "harmed": answer.harmed.share,
            "broken": answer.broken,
        }
        metrics |= {f"verdict.{answer.emotion}.{name}": value for name, value in values.items()}
    return metrics
