"""Texts -> probabilities, in ONNX Runtime: no torch, no transformers."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import psutil
from scipy.special import expit, softmax
from tokenizers import Tokenizer

from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.errors import UserError
from emo_mlflow.scoring.cards import (
    CARD,
    EMBEDDED,
    GRAPH,
    SETS,
    TOKENIZER,
    Card,
    Head,
    builtin_cards,
    embedded_folder,
    is_hub_id,
    load_card,
    source_key,
)
from emo_mlflow.scoring.score_cache import ScoreCache
from emo_mlflow.types import FloatArray

log = logging.getLogger(__name__)

# Rows x longest row of a batch. Measured on a CPU: best from 128 to 512; at 8,192 half as fast, for lack of cache.
TOKEN_BUDGET, GPU_TOKEN_BUDGET = 512, 16_384
_PROVIDERS = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider")
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True, eq=False)
class _Scorer:
    """One card with its graph and tokenizer, ready to run."""

    card: Card
    session: ort.InferenceSession
    tokenizer: Tokenizer

    def score(self, texts: Sequence[str]) -> FloatArray:
        """Distinct texts -> float32 [texts, metrics of the card], in batches of similar length."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        lengths = np.array([len(row) for row in rows])
        found = np.empty((len(rows), len(self.card.metrics)), dtype=np.float32)
        for part in _batches(lengths, self._token_budget()):
            names = [head.output for head in self.card.heads]
            logits = self.session.run(names, self._inputs([rows[i] for i in part]))
            activated = [_activate(x, head) for x, head in zip(logits, self.card.heads, strict=True)]
            found[part] = np.concatenate(activated, axis=1)
        return found

    def _token_budget(self) -> int:
        return GPU_TOKEN_BUDGET if "CUDAExecutionProvider" in self.session.get_providers() else TOKEN_BUDGET

    def _inputs(self, rows: list[list[int]]) -> dict[str, np.ndarray]:
        ids = np.full((len(rows), max(map(len, rows))), self.card.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {node.name: given[node.name] for node in self.session.get_inputs()}


class Scorers:
    """Several scorers that are run on the same texts.

    Attributes:
        metrics: names of the columns, `head.label`.
        fingerprints: of each scorer, by name: files, heads and length.
        providers: the ONNX Runtime providers in use.
    """

    def __init__(self, scorers: Sequence[_Scorer], cache: ScoreCache | None = None) -> None:
        self._scorers = list(scorers)
        self._cache = cache
        self.cards = [scorer.card for scorer in scorers]
        self.metrics: tuple[str, ...] = tuple(metric for card in self.cards for metric in card.metrics)
        self.fingerprints: dict[str, str] = {card.name: card.fingerprint for card in self.cards}
        self.providers: list[str] = list(dict.fromkeys(p for s in scorers for p in s.session.get_providers()))

    def score(self, texts: Sequence[str] | pd.Series) -> FloatArray:
        """Texts -> float32 [len(texts), len(metrics)], rows in the order of the texts.

        Each distinct text is scored once. An empty text is scored like any other.

        Raises:
            UserError: a text is not a string; the message names the row.
        """
        if isinstance(texts, str | pd.DataFrame):
            raise UserError(f"expected a list of texts or a column, found a {type(texts).__name__}")
        values = list(texts)
        _check_texts(values)
        distinct = list(dict.fromkeys(values))
        row_of = {text: row for row, text in enumerate(distinct)}
        columns = [self._score_distinct(scorer, distinct) for scorer in self._scorers]
        return np.concatenate(columns, axis=1)[[row_of[text] for text in values]]

    def _score_distinct(self, scorer: _Scorer, texts: list[str]) -> FloatArray:
        if self._cache is None:
            return scorer.score(texts)
        key, width = scorer.card.fingerprint, len(scorer.card.metrics)
        known = self._cache.read(key, texts, width)
        unknown = [text for text in texts if text not in known]
        fresh = dict(zip(unknown, scorer.score(unknown), strict=True))
        self._cache.write(key, fresh)
        return np.array([known[t] if t in known else fresh[t] for t in texts], dtype=np.float32).reshape(-1, width)


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
        raise UserError(f"no scorer was named; choose from {', '.join(_choices())}, a folder, or a YAML card")
    scorers = [_load(find_scorer(name)) for name in dict.fromkeys(expanded)]
    owners: dict[str, str] = {}
    for scorer in scorers:
        for metric in scorer.card.metrics:
            if owners.setdefault(metric, scorer.card.name) != scorer.card.name:
                raise UserError(f"the scorers {owners[metric]} and {scorer.card.name} both have {metric}: drop one")
    loaded = Scorers(scorers, ScoreCache(cache) if cache else None)
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


def find_scorer(name: str) -> Path:
    """The folder that holds a scorer's graph, tokenizer and card.

    Raises:
        UserError: nothing of that name, or a classifier that has not been exported yet.
    """
    if name == EMBEDDED:
        return embedded_folder()
    path = builtin_cards().get(name, Path(name))
    if (path / CARD).is_file():
        return path
    if path.is_file():
        card = load_card(path)
        if card.files:
            return path.parent
        key = card.key
    elif path.is_dir() or is_hub_id(name):
        key = source_key(name)
    else:
        raise UserError(f"unknown scorer {name!r}: choose from {', '.join(_choices())}, a folder, or a YAML card")
    pointer = cache_folder() / "scorers" / key / "current"
    if not pointer.is_file():
        raise UserError(f"the scorer {name} is not exported yet: run `emo-mlflow export --scorer {name}` first")
    target = pointer.read_text(encoding="utf-8").strip()
    if not re.fullmatch(r"[0-9a-f]{8,64}", target):
        raise UserError(f"{pointer} does not name an export: run `emo-mlflow export --scorer {name}` again")
    return pointer.parent / target


def _choices() -> list[str]:
    return [EMBEDDED, *SETS, *builtin_cards()]


def _load(folder: Path) -> _Scorer:
    card = load_card(folder / CARD)
    unset = [head.name for head in card.heads if head.activation is None]
    if unset:
        raise UserError(f"the card of {card.name} does not say the activation of {', '.join(unset)}")
    contents = {name: _read_verified(folder / name, card) for name in (GRAPH, TOKENIZER)}
    try:
        session = ort.InferenceSession(contents[GRAPH], _session_options(), providers=available_providers())
    except Exception as error:  # ONNX Runtime's exceptions share no other base class
        raise UserError(f"ONNX Runtime cannot load {folder / GRAPH}: {' '.join(str(error).split())[:300]}") from None
    _check_graph(card, session)
    scorer = _Scorer(card, session, load_tokenizer(contents[TOKENIZER].decode(errors="replace"), card.max_length))
    _try(scorer)
    return scorer


def _try(scorer: _Scorer) -> None:
    """Scores two texts, so that files which cannot are found out before anything is generated."""
    try:
        scores = scorer.score(["", "I thank you."])
    except Exception as error:  # of ONNX Runtime, tokenizers or numpy, as the files have it
        raise UserError(f"the scorer {scorer.card.name} cannot score: {' '.join(str(error).split())[:300]}") from None
    if not np.isfinite(scores).all():
        raise UserError(f"the scorer {scorer.card.name} gives scores that are not finite")


def load_tokenizer(text: str, max_length: int) -> Tokenizer:
    """A tokenizer from the content of its file: no padding, texts cut to `max_length` tokens.

    Raises:
        UserError: if it is none.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"the scorer's {TOKENIZER} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    return tokenizer


def _read_verified(path: Path, card: Card) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the scorer {card.name} is incomplete: cannot read {path}: {error.strerror}") from None
    expected = card.files.get(path.name)
    if expected is None:
        raise UserError(f"{path.parent / CARD} has no sha256 of {path.name} under files")
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is corrupted: its sha256 is {found[:12]}..., the card says {expected[:12]}...; "
            "install the package again, or delete the folder and export again"
        )
    return content


def _check_graph(card: Card, session: ort.InferenceSession) -> None:
    widths = {node.name: node.shape[-1] for node in session.get_outputs()}
    for head in card.heads:
        if head.output not in widths:
            raise UserError(f"the graph of {card.name} has no output {head.output}; it has {', '.join(widths)}")
        if isinstance(widths[head.output], int) and widths[head.output] != len(head.labels):
            raise UserError(
                f"the card of {card.name} has {len(head.labels)} labels for the output {head.output}, "
                f"which is {widths[head.output]} wide"
            )
    unknown = sorted({node.name for node in session.get_inputs()} - _INPUTS)
    if unknown:
        raise UserError(f"the graph of {card.name} wants {', '.join(unknown)}, which a text does not give")


def available_providers() -> list[str]:
    """ONNX Runtime's providers on this machine, fastest first."""
    installed = ort.get_available_providers()
    return [provider for provider in _PROVIDERS if provider in installed]


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads()
    options.log_severity_level = 3
    return options


def n_threads() -> int:
    """OMP_NUM_THREADS where set, else the physical cores that this process may use."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Row numbers, sorted by length, in batches whose padded size stays within `budget` where a row alone does."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > budget:
            yield order[start:end]
            start = end


def _activate(logits: FloatArray, head: Head) -> FloatArray:
    scaled = logits / np.float32(head.temperature)
    if head.activation == "softmax":
        return softmax(scaled, axis=1)
    return expit(scaled) if head.activation == "sigmoid" else scaled


def _check_texts(texts: list[str]) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"row {row}: expected a text, found {text!r} ({type(text).__name__}); drop such rows")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"row {row}: the text is not valid Unicode ({error.reason} at {error.start})") from None
