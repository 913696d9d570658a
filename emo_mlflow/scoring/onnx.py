"""Texts -> probabilities, in ONNX Runtime: no torch, no transformers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
from scipy.special import expit, softmax
from tokenizers import Encoding, Tokenizer

from emo_mlflow.common import progress
from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.scoring.agreement import Agreement
from emo_mlflow.scoring.cards import (
    CARD,
    EMBEDDED,
    GRAPH,
    SETS,
    TOKENIZER,
    UNPADDED,
    Card,
    Head,
    builtin_cards,
    embedded_folder,
    is_hub_id,
    load_card,
    source_key,
)
from emo_mlflow.types import FloatArray

# Rows x longest row of a batch. Measured on a CPU: best from 128 to 512; at 8,192 half as fast, for lack of cache.
TOKEN_BUDGET, GPU_TOKEN_BUDGET = 512, 16_384
# Is scored for an empty text by classifiers whose rows are not padded: some of them put no token of their own around a text.
FOR_NOTHING = "."
_PROVIDERS = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider")
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True, eq=False)
class OnnxScorer:
    """One card with its graph and tokenizer, ready to run: a `protocol.Scorer`."""

    card: Card
    session: ort.InferenceSession
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        """The card's."""
        return self.card.name

    @property
    def metrics(self) -> tuple[str, ...]:
        """`head.label`, in the order of the card's heads and labels."""
        return self.card.metrics

    @property
    def fingerprint(self) -> str:
        """Of files, heads and length."""
        return self.card.fingerprint

    @property
    def costs(self) -> Mapping[str, float]:
        """None but the time."""
        return {}

    @property
    def agreement(self) -> tuple[Agreement, ...]:
        """The card's figures."""
        return self.card.readers

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's, fastest first."""
        return tuple(self.session.get_providers())

    def score(self, texts: Sequence[str]) -> FloatArray:
        """Distinct texts -> float32 [texts, metrics of the card], in batches of similar length."""
        rows = self.tokenizer.encode_batch(list(texts))
        if self.card.pad_id == UNPADDED:
            rows = [row if row.ids else self.tokenizer.encode(FOR_NOTHING) for row in rows]
        lengths = np.array([len(row.ids) for row in rows])
        found = np.empty((len(rows), len(self.metrics)), dtype=np.float32)
        for part in _batches(lengths, self._token_budget(), equal=self.card.pad_id == UNPADDED):
            names = [head.output for head in self.card.heads]
            logits = self.session.run(names, self._inputs([rows[i] for i in part]))
            progress.advance(progress.SCORING, len(part), len(rows))
            activated = [_activate(x, head) for x, head in zip(logits, self.card.heads, strict=True)]
            found[part] = np.concatenate(activated, axis=1)
        return found

    def _token_budget(self) -> int:
        return GPU_TOKEN_BUDGET if "CUDAExecutionProvider" in self.providers else TOKEN_BUDGET

    def _inputs(self, rows: list[Encoding]) -> dict[str, np.ndarray]:
        ids = np.full((len(rows), max(len(row.ids) for row in rows)), self.card.pad_id, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = row.ids
            mask[i, : len(row.ids)] = 1
            types[i, : len(row.ids)] = row.type_ids
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {node.name: given[node.name] for node in self.session.get_inputs()}


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
        raise UserError(f"unknown scorer {name!r}: choose from {', '.join(choices())}, a folder, or a YAML card")
    pointer = cache_folder() / "scorers" / key / "current"
    if not pointer.is_file():
        raise UserError(f"the scorer {name} is not exported yet: run `emo-mlflow export --scorer {name}` first")
    target = pointer.read_text(encoding="utf-8").strip()
    if not re.fullmatch(r"[0-9a-f]{8,64}", target):
        raise UserError(f"{pointer} does not name an export: run `emo-mlflow export --scorer {name}` again")
    return pointer.parent / target


def choices() -> list[str]:
    """What can be named without a path."""
    return [EMBEDDED, *SETS, *builtin_cards()]


def load_onnx(folder: Path) -> OnnxScorer:
    """The scorer in a folder, its files checked against the hashes in the card.

    Raises:
        UserError: a file is missing, changed or damaged, or the graph is not what the card says.
    """
    card = load_card(folder / CARD)
    unset = [head.name for head in card.heads if head.activation is None]
    if unset:
        raise UserError(f"the card of {card.name} does not say the activation of {', '.join(unset)}")
    contents = {name: _read_verified(folder / name, card) for name in (GRAPH, TOKENIZER)}
    try:
        session = ort.InferenceSession(contents[GRAPH], _session_options(), providers=available_providers())
    except Exception as error:  # ONNX Runtime's exceptions share no other base class
        raise UserError(f"ONNX Runtime cannot load {folder / GRAPH}: {reason_of(error)}") from None
    _check_graph(card, session)
    return OnnxScorer(card, session, load_tokenizer(contents[TOKENIZER].decode(errors="replace"), card.max_length))


def load_tokenizer(text: str, max_length: int) -> Tokenizer:
    """A tokenizer from the content of its file: no padding, texts cut to `max_length` tokens at the end that the file says.

    Raises:
        UserError: if it is none.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        side = str((tokenizer.truncation or {}).get("direction", "right")).lower()
        tokenizer.enable_truncation(max_length, direction=side)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(f"the scorer's {TOKENIZER} cannot be loaded: {reason_of(error)}") from None
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


def _batches(lengths: np.ndarray, budget: int, equal: bool) -> Iterator[np.ndarray]:
    """Row numbers, sorted by length, in batches whose padded size stays within `budget` where a row alone does.

    Args:
        equal: whether only rows of equal length share a batch.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end + 1 - start) * lengths[order[end]] > budget
        if full or (equal and lengths[order[end]] > lengths[order[start]]):
            yield order[start:end]
            start = end


def _activate(logits: FloatArray, head: Head) -> FloatArray:
    scaled = logits / np.float32(head.temperature)
    if head.activation == "softmax":
        return softmax(scaled, axis=1)
    return expit(scaled) if head.activation == "sigmoid" else scaled
