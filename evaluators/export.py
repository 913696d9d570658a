"""Exporting a sequence classifier: checkpoint -> checked ONNX in the cache, with its card."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from emo_mlflow.evaluators.checkpoint import Checkpoint, find_checkpoint
from emo_mlflow.evaluators.classifier import load_classifier, trace
from filelock import FileLock

from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.common.files import sha256
from emo_mlflow.errors import UserError
from emo_mlflow.scoring.cards import CARD, GRAPH, TOKENIZER, UNPADDED, Card, dump_card
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.types import FloatArray, Precision, WeightsFormat, digest

log = logging.getLogger(__name__)

LARGEST_DIFFERENCE = 1e-4
BLOCK = 128  # inputs that share an int8 scale; RoBERTa-base took a sixth less CPU time than with 64
_VERSIONED = ("optimum", "optimum-onnx", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers")
_WORDS = (
    "I we you they it the a this that never always maybe thank thanks sorry please hate love fear wonderful terrible "
    "meeting garden report river music because although and but help answer wait leave stay remember forget question "
    "yesterday tomorrow quickly slowly honest angry glad tired proud 42 3.14 :) ... ! ? don't you're café"
)


def export_scorer(
    source: str,
    precision: Precision = "int8",
    optimize: bool = False,
    weights_format: WeightsFormat = "safetensors",
) -> Path:
    """Exports a classifier, checks it against PyTorch, and returns its folder in the cache.

    What was exported before with the same weights, options and versions is returned as it is. Processes that export the
    same at once wait for the first. `load_scorers` finds the latest export by the same `source`.

    Args:
        source: a card's name or path, a folder with a checkpoint, or a hub id.
        precision: int8 quantises the weights after the float32 graph has been checked.
        optimize: fuse operators with ONNX Runtime's transformer optimiser first.
        weights_format: pickle also reads pytorch_model.bin, with PyTorch's restricted loader.

    Raises:
        UserError: see `find_checkpoint`; the extra is not installed; or the graph differs from PyTorch.
    """
    try:
        versions = {name: version(name) for name in _VERSIONED}
    except PackageNotFoundError as error:
        raise UserError(f"exporting needs {error.name}: pip install 'emo_mlflow[export]'") from None
    checkpoint = find_checkpoint(source, weights_format)
    options = {"precision": precision, "optimize": optimize} | ({"block": BLOCK} if precision == "int8" else {})
    home = cache_folder() / "scorers" / checkpoint.key
    made_from = [dict(checkpoint.hashes), checkpoint.revision, dump_card(checkpoint.card)]
    target = home / digest([*made_from, options, versions])
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        if not _is_complete(target):
            with _work_folder(home) as work:
                made = _export(checkpoint, work, precision, optimize)
                card = replace(made, provenance={"options": options, "versions": versions, **made.provenance})
                finished = work / "finished"
                (finished / CARD).write_text(dump_card(card), encoding="utf-8")
                if target.exists():
                    target.rename(work / "broken")
                finished.rename(target)
        _point_to(home, target)
    log.info("exported %s to %s", checkpoint.card.name, target)
    return target


def compare(found: FloatArray, expected: FloatArray) -> dict[str, Any]:
    """Probabilities [texts, labels] twice -> largest difference, and how often the top label agrees."""
    return {
        "n_texts": len(found),
        "largest_difference": float(np.abs(found - expected).max()),
        "top_label_agreement": round(float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()), 4),
    }


def check_texts(n: int = 240, seed: int = 0) -> list[str]:
    """Texts of many lengths, from none to 2,000 words, with emoji, line breaks and other scripts among them."""
    generator = random.Random(seed)
    words = _WORDS.split(" ")
    texts = ["", " ", "ok", "😀", "🙏🏽 thank you ❤️", "Спасибо большое", "\n\n\t", "a" * 400]
    texts += ["ありがとうございます。とても嬉しいです。", " ".join(generator.choices(words, k=2000))]
    lengths = [generator.choice((1, 2, 3, 5, 8, 12, 20, 30, 50, 80)) for _ in range(n - len(texts))]
    return texts + [" ".join(generator.choices(words, k=k)) for k in lengths]


@contextmanager
def _work_folder(home: Path) -> Iterator[Path]:
    """An empty folder for the holder of the lock; what a killed export left there goes first."""
    work = home / ".work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        load_scorers([str(folder)])
    except UserError as error:
        log.warning("exporting again: %s", error)
        return False
    return True


def _point_to(home: Path, target: Path) -> None:
    pointer = home / "current.new"
    pointer.write_text(target.name, encoding="utf-8")
    os.replace(pointer, home / "current")


def _export(checkpoint: Checkpoint, work: Path, precision: Precision, optimize: bool) -> Card:
    """Makes `work/finished` with graph and tokenizer; returns its card."""
    from emo_mlflow.evaluators.graph import fuse, quantize

    classifier = load_classifier(checkpoint)
    exact, finished = work / "float32", work / "finished"
    trace(classifier, exact)
    if optimize:
        fuse(exact / GRAPH, classifier.model.config.num_attention_heads, classifier.model.config.hidden_size)
    classifier.save_tokenizer(exact)
    texts = check_texts()
    expected = classifier.probabilities(texts)
    card = _checked_card(checkpoint, classifier.card, exact, texts, expected, "float32")
    difference = card.quality["float32"]["largest_difference"]
    if not difference < LARGEST_DIFFERENCE and card.pad_id != UNPADDED:  # XLNet reads a row's last place
        card = _checked_card(checkpoint, replace(classifier.card, pad_id=UNPADDED), exact, texts, expected, "float32")
        difference = card.quality["float32"]["largest_difference"]
    if not difference < LARGEST_DIFFERENCE:
        raise UserError(
            f"the export of {card.source} differs from PyTorch by {difference:.1e} in probability "
            f"(allowed: {LARGEST_DIFFERENCE:.0e}); it was deleted"
        )
    if precision == "float32":
        exact.rename(finished)
        return card
    finished.mkdir()
    quantize(exact / GRAPH, finished / GRAPH, BLOCK)
    (exact / TOKENIZER).rename(finished / TOKENIZER)
    quantized = _checked_card(checkpoint, card, finished, texts, expected, "int8")
    return replace(quantized, quality={**card.quality, **quantized.quality})


def _checked_card(
    checkpoint: Checkpoint, card: Card, folder: Path, texts: list[str], expected: FloatArray, precision: Precision
) -> Card:
    """Scores the texts with the graph in `folder` and returns its card with the comparison under `quality`."""
    card = replace(card, files={name: sha256(folder / name) for name in (GRAPH, TOKENIZER)})
    (folder / CARD).write_text(dump_card(card), encoding="utf-8")
    report = compare(load_scorers([str(folder)]).score(texts), expected)
    log.info("%s, %s against PyTorch: %s", card.name, precision, report)
    provenance = {"revision": checkpoint.revision, "weights_sha256": dict(checkpoint.hashes)}
    return replace(card, quality={precision: report}, provenance=provenance)
