"""Names to scorers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.scoring.cards import EMBEDDED, SETS
from emo_mlflow.scoring.onnx import choices, find_scorer, load_onnx
from emo_mlflow.scoring.protocol import Scorer, Scorers
from emo_mlflow.scoring.score_cache import ScoreCache
from emo_mlflow.types import FloatArray

log = logging.getLogger(__name__)


def load_scorer(name: str) -> Scorer:
    """One scorer by its name, tried on two texts. Every kind of scorer is chosen here.

    Raises:
        UserError: it is unknown, cannot be loaded, or does not score.
    """
    scorer = load_onnx(find_scorer(name))
    _try(scorer)
    return scorer


def load_scorers(names: Sequence[str], cache: Path | None = None) -> Scorers:
    """Loads scorers, checked against the hashes in their cards.

    Args:
        names: `embedded`, `hub`, a card's name, a folder with an exported scorer, or the path of a YAML card.
        cache: a SQLite file that keeps scores by scorer and text; None for no cache.

    Raises:
        UserError: a scorer is unknown, not exported, or its files are not what the card says; two share a metric.
    """
    expanded = [member for name in names for member in SETS.get(name, (name,))]
    if not expanded:
        raise UserError(f"no scorer was named; choose from {', '.join(choices())}, a folder, or a YAML card")
    loaded = Scorers([load_scorer(name) for name in dict.fromkeys(expanded)], ScoreCache(cache) if cache else None)
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
    except Exception as error:  # of ONNX Runtime, tokenizers or numpy, as the files have it
        raise UserError(f"the scorer {scorer.name} cannot score: {reason_of(error)}") from None
    if scores.shape != (2, len(scorer.metrics)) or not np.isfinite(scores).all():
        raise UserError(f"the scorer {scorer.name} does not give a finite score for each of {', '.join(scorer.metrics)}")
