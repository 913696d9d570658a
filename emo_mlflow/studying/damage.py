"""What the tested directions do to texts and questions that nobody steered: teacher-forced, so nothing is generated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from emo_mlflow.statistics.margins import non_inferiority
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.steering.choices import ChoiceMeter, encode_item
from emo_mlflow.steering.damage import DamageMeter
from emo_mlflow.steering.edits import Patch
from emo_mlflow.studying.plan import StudyPlan
from emo_mlflow.studying.protocol import Arm


def damage_table(plan: StudyPlan) -> pd.DataFrame:
    """damage.parquet: a row per emotion and layer.

    Columns: emotion, layer, alpha, alpha_unit, dose (the factor of the direction: alpha but for `kl`); on neutral passages kl (nats per token),
    perplexity_ratio (patched over clean), same_top (share of tokens for which both hold the same token for the likeliest); on multiple-choice
    items n_items, accuracy_clean, accuracy_patched, log_probability_change (of the right answer among the choices, mean, nats), its lower bound
    (one-sided, 95%), margin, p_noninferior and passed: whether a loss of the margin is ruled out.
    """
    arms = plan.arms
    places = [(place, condition) for place in plan.design.places for condition in arms.conditions(Arm(place.emotion))]
    steering = [arms.patches[condition.condition_id] for _, condition in places]
    patches = [replace(patch, alpha_by_step=patch.alpha_by_step[:1]) for patch in steering]  # a text is read in one pass
    boundaries = sorted({patch.boundary for patch in patches})
    forced = DamageMeter(plan.stack, plan.passages, boundaries).measure(patches)
    clean, steered = _right_answers(plan, boundaries, patches)
    rows = []
    for i, (place, condition) in enumerate(places):
        test = non_inferiority(steered[i].log_probability - clean.log_probability, plan.inputs.settings.margin)
        rows.append(
            {
                "emotion": place.emotion,
                "layer": condition.layer,
                "alpha": place.alpha,
                "alpha_unit": place.alpha_unit,
                "dose": arms.doses.get(condition.condition_id, (place.alpha, np.nan))[0],
                "kl": float(forced.mean_kl[i]),
                "perplexity_ratio": float(forced.perplexity_ratio[i]),
                "same_top": float(forced.same_top[i].mean()),
                "n_items": test.n,
                "accuracy_clean": float(clean.right.mean()),
                "accuracy_patched": float(steered[i].right.mean()),
                "log_probability_change": test.mean,
                "log_probability_bound": test.bound,
                "margin": test.margin,
                "p_noninferior": test.p,
                "passed": test.passed,
            }
        )
    return pd.DataFrame(rows)


class _Answers:
    """How a model answers: log-probability of the right choice among the choices [items], and whether it is the likeliest [items]."""

    def __init__(self, total: Floats, right: np.ndarray) -> None:
        among = log_softmax(np.where(np.isnan(total), -np.inf, total), axis=1)
        rows = np.arange(len(right))
        self.log_probability: Floats = among[rows, right]
        self.right = among.argmax(axis=1) == right


def _right_answers(plan: StudyPlan, boundaries: list[int], patches: list[Patch]) -> tuple[_Answers, list[_Answers]]:
    questions = plan.inputs.items
    prepend = plan.inputs.settings.prepend_bos
    items = [encode_item(plan.loaded, question.question, question.choices, prepend) for question in questions]
    scores = ChoiceMeter(plan.stack, items, boundaries).measure([None, *patches])
    right = np.array([question.answer for question in questions])
    clean, *steered = (_Answers(total, right) for total in scores.per_token)
    return clean, steered
