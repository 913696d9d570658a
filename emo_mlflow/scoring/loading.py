"""Names to scorers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.scoring import logged_model, rubric
from emo_mlflow.scoring.cards import EMBEDDED, SETS
from emo_mlflow.scoring.judge import Judge
from emo_mlflow.scoring.onnx import choices, find_scorer, load_onnx
from emo_mlflow.scoring.protocol import Scorer, Scorers
from emo_mlflow.scoring.score_cache import ScoreCache
from emo_mlflow.types import FloatArray

log = logging.getLogger(__name__)

MAX_CALLS = 10_000


def load_scorer(name: str, max_calls: int = MAX_CALLS) -> Scorer:
    """One scorer by its name, tried on two texts. Every kind of scorer is chosen here.

    Args:
        max_calls: how often a judge is asked, at most.

    Raises:
        UserError: it is unknown, cannot be loaded, or does not score.
    """
    scorer: Scorer
    if rubric.is_judge(name):
        scorer = Judge(rubric.parse_address(name), max_calls)
    elif name.startswith(logged_model.SCHEME):
        scorer = logged_model.load_logged_model(name)
    else:
        scorer = load_onnx(find_scorer(name))
    _try(scorer)
    return scorer


def load_scorers(names: Sequence[str], cache: Path | None = None, max_calls: int = MAX_CALLS) -> Scorers:
    """Loads scorers, checked against the hashes in their cards.

    Args:
        names: `embedded`, `hub`, a card's name, a folder with an exported scorer, the path of a YAML card, `models:/NAME/VERSION`,
            `models:/NAME@alias`, or a judge's address.
        cache: a SQLite file that keeps scores by scorer and text; None for no cache.
        max_calls: how often each judge is asked, at most.

    Raises:
        UserError: a scorer is unknown, not exported, or its files are not what the card says; two share a metric.
    """
    expanded = [member for name in names for member in SETS.get(name, (name,))]
    if not expanded:
        raise UserError(f"no scorer was named; choose from {', '.join(choices())}, a folder, a YAML card, models:/NAME/VERSION, or a judge")
    loaded = Scorers([load_scorer(name, max_calls) for name in dict.fromkeys(expanded)], ScoreCache(cache) if cache else None)
    log.info("scorers %s on %s", ", ".join(loaded.fingerprints), ", ".join(loaded.providers))
    return loaded


def score(
    texts: Sequence[str] | pd.Series, scorers: str | Sequence[str] = EMBEDDED, cache: Path | None = None
) -> pd.DataFrame:
    """Scores texts: a row per text in their order, a float32 column per metric `scorer.label`.

    `scorers` and `cache` as in `load_scorers`. Keeps a Series' index.
    """
    loaded = load_scorers([scorers] if isinstance(scorers, str) else scorers, cache)
    index = texts.index if isinstance(texts, pd.Series) else None
    return pd.DataFrame(loaded.score(texts), columns=list(loaded.metrics), index=index)


def _try(scorer: Scorer) -> None:
    """Scores two texts, so that what cannot is found out before anything is generated."""
    try:
        scores: FloatArray = scorer.score(["", "I thank you."])
    except UserError:
        raise
    except Exception as error:  # of ONNX Runtime, tokenizers or numpy, as the files have it
        raise UserError(f"the scorer {scorer.name} cannot score: {reason_of(error)}") from None
    if isinstance(scorer, Judge):
        if np.isnan(scores).all():
            raise UserError(f"the judge {scorer.name} gave no answer about two texts that could be read: change its rubric or its model")
        return
    if scores.shape != (2, len(scorer.metrics)) or not np.isfinite(scores).all():
        raise UserError(f"the scorer {scorer.name} does not give a finite score for each of {', '.join(scorer.metrics)}")
