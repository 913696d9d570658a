"""How probable it is that readers call a text broken: loops and word salad, from its repetition and its likelihood."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from emo_mlflow.statistics.moments import Floats, Mask

FEATURES = ("repeated words", "repeated pairs", "repeated triples", "repeated fours", "rms NLL")
# Fitted by `python bench/broken_text.py` on two readers' labels (tests/data/README.md says how well they agree).
WEIGHTS = (1.992, 5.436, 4.643, 4.377, 1.396)
BIAS = -8.911
# A condition breaks text where it raises the mean of `broken` by more than this, which is what a third more of the texts does.
# By the labels, with 18 prompts: said of 2% of the conditions that break nothing more, of 79% that break half of the texts.
RISE = 0.23
LIMIT = 0.5  # share of broken texts above which a control can express nothing
_WORDS = re.compile(r"\w+|[^\w\s]")


def broken(texts: Sequence[str], nll: npt.ArrayLike, nll_sd: npt.ArrayLike) -> Floats:
    """Probability that a text is broken, [texts]; NaN where its likelihood is not known.

    Args:
        texts: what was written, without the prompt.
        nll, nll_sd: mean and standard deviation of the tokens' negative log-likelihood under the unpatched model, in nats, [texts].
    """
    values = features(texts, nll, nll_sd)
    return np.asarray(1 / (1 + np.exp(-(values @ np.array(WEIGHTS) + BIAS))))


def breaks_text(rise: npt.ArrayLike) -> Mask:
    """Whether a condition breaks text, from how much it raises the mean of `broken`; not where that is unknown."""
    return np.asarray(np.asarray(rise, float) > RISE)


def features(texts: Sequence[str], nll: npt.ArrayLike, nll_sd: npt.ArrayLike) -> Floats:
    """FEATURES of each text, [texts, features].

    The root mean square of the tokens' NLL is what their mean and spread say together: word salad has a few very improbable tokens.
    """
    rms = np.hypot(np.asarray(nll, float), np.asarray(nll_sd, float))
    repeats = np.array([_repeats(text) for text in texts], float).reshape(len(texts), len(FEATURES) - 1)
    return np.column_stack([repeats, rms])


def _repeats(text: str) -> list[float]:
    words = _WORDS.findall(text.lower())
    shares, runs = [_repeated(words)], list(pairwise(words))
    for _ in range(3):
        shares.append(_repeated(runs))
        runs = list(pairwise(runs))
    return shares


def _repeated(runs: Sequence[object]) -> float:
    """The share of runs of words that were there before."""
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
