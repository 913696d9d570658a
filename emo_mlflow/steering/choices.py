"""Log-probabilities of the choices of multiple-choice items, under the unpatched model and under patches; nothing is generated.

An item's question is run once for all its choices, and all positions but the first are edited, as in `damage`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from threading import Event

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.kv_cache import PackedCache
from emo_mlflow.models.loading import LoadedModel
from emo_mlflow.models.tokens import encode
from emo_mlflow.steering.damage import BATCH_TOKENS, PACK_TOKENS
from emo_mlflow.steering.edits import Patch
from emo_mlflow.steering.forced import Forced, padded, run_clean, run_patched
from emo_mlflow.steering.likelihood import TOKENS_ON_A_GPU, nll_of
from emo_mlflow.steering.parallel import n_cores, on_threads
from emo_mlflow.types import Tokens

QUESTION, CHOICE = "Question: {}\nAnswer:", " {}"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """A question, the document-start token first, and what may follow it; token ids."""

    question: Tokens
    choices: tuple[Tokens, ...]


@dataclass(frozen=True, eq=False)
class ChoiceScores:
    """How likely each choice is after its question.

    Attributes:
        total: float64 [patches, items, choices], the sum of the log-probabilities of a choice's tokens, in nats; NaN where an item has
            fewer choices than another.
        n_tokens: float64 [items, choices], NaN likewise.
    """

    total: Floats
    n_tokens: Floats

    @property
    def per_token(self) -> Floats:
        """The mean over a choice's tokens, which does not favour short choices, float64 [patches, items, choices]."""
        return self.total / self.n_tokens


def encode_item(loaded: LoadedModel, question: str, choices: Sequence[str], prepend_bos: bool) -> Item:
    """The item's token ids, question and choices as `QUESTION` and `CHOICE` word them.

    A choice's tokens are those that it has behind the question: alone, some tokenizers put another space in front of it.
    """
    text, worded = QUESTION.format(question), [CHOICE.format(choice) for choice in choices]
    (asked,) = encode(loaded, [text], prepend_bos)
    alone = encode(loaded, worded, prepend_bos=False)
    together = encode(loaded, [text + choice for choice in worded], prepend_bos)
    behind = zip(together, alone, strict=True)
    return Item(asked, tuple(whole[len(asked) :] if whole[: len(asked)] == asked else own for whole, own in behind))


@dataclass(frozen=True, eq=False)
class _Group:
    """Items whose questions are of one length.

    Attributes:
        questions: what the unpatched model was given.
        answers: all choices but their last tokens, items in order; None where all have one token.
        owner: int64 [choices], which of the group's items a choice is of.
        rows, positions, targets: int64 [tokens]: a choice, the place in it, and the token there.
        cells: int64 [2, choices], item and choice among all.
    """

    questions: Forced
    answers: Forced | None
    owner: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    cells: npt.NDArray[np.int64]


class ChoiceMeter:
    """Items whose questions and choices the unpatched model has read.

    Args:
        boundaries: where patches will be (`Patch.boundary`).

    Raises:
        UserError: if there is no item, or a question or a choice has no tokens of its own; as `BlockStack.is_long`.
    """

    def __init__(self, stack: BlockStack, items: Sequence[Item], boundaries: Collection[int]) -> None:
        if not items or any(len(item.question) < 2 or not item.choices or not all(item.choices) for item in items):
            raise UserError(
                "multiple-choice items need a question and choices that are not empty: give some, and mend those that are"
            )
        for item in items:
            stack.is_long(len(item.question), max(map(len, item.choices)))
        self.stack = stack
        self.items = list(items)
        self._groups = [self._read(members, boundaries) for members in self._members()]
        most = max(len(item.choices) for item in items)
        self.n_tokens = np.full((len(items), most), np.nan)
        for i, item in enumerate(items):
            self.n_tokens[i, : len(item.choices)] = [len(choice) for choice in item.choices]

    def _members(self) -> list[list[int]]:
        most = BATCH_TOKENS.get(self.stack.device.type, TOKENS_ON_A_GPU)
        found = []
        for length, same in groupby(sorted(range(len(self.items)), key=self._length), self._length):
            members, size = list(same), max(1, most // length)
            found += [members[i : i + size] for i in range(0, len(members), size)]
        return found

    def _length(self, i: int) -> int:
        return len(self.items[i].question)

    def _read(self, members: Sequence[int], boundaries: Collection[int]) -> _Group:
        device = self.stack.device
        tokens = padded([self.items[i].question for i in members], device)
        cache = PackedCache(*tokens.shape)
        questions = run_clean(self.stack, tokens, boundaries, cache)
        choices = [(i, j, choice) for i in members for j, choice in enumerate(self.items[i].choices)]
        owner = torch.tensor([members.index(i) for i, _, _ in choices], device=device)
        spots = [
            (row, place, token) for row, (_, _, choice) in enumerate(choices) for place, token in enumerate(choice)
        ]
        rows, positions, targets = torch.tensor(spots, dtype=torch.long, device=device).T
        answers = None
        if any(len(choice) > 1 for _, _, choice in choices):
            begun = padded([choice[:-1] for _, _, choice in choices], device)
            answers = run_clean(
                self.stack, begun, boundaries, continued(cache, owner, tokens.shape[1], begun.shape[1]), tokens.shape[1]
            )
        cells = np.array([(i, j) for i, j, _ in choices]).T
        return _Group(questions, answers, owner, rows, positions, targets, cells)

    def measure(self, patches: Sequence[Patch | None]) -> ChoiceScores:
        """The choices' log-probabilities under each patch, at its first alpha; None is the unpatched model."""
        total = np.full((len(patches), *self.n_tokens.shape), np.nan)
        order = sorted((i for i, patch in enumerate(patches) if patch), key=lambda i: patches[i].boundary)  # type: ignore[union-attr]
        clean = [i for i, patch in enumerate(patches) if patch is None]
        jobs = [
            (group, part) for group in self._groups for part in ([clean] if clean else []) + self._packs(order, group)
        ]
        n = max(1, min(n_cores(self.stack), len(jobs)))

        def work(stack: BlockStack, thread: int, stop: Event) -> None:
            for group, part in jobs[thread::n]:
                if stop.is_set():
                    return
                chosen = [patch for i in part if (patch := patches[i]) is not None]
                sums = self._patched(stack, group, chosen) if chosen else self._clean(stack, group)
                total[np.array(part)[:, None], group.cells[0], group.cells[1]] = sums.cpu().numpy()

        on_threads(self.stack, n, work)
        return ChoiceScores(total, self.n_tokens)

    def _packs(self, order: Sequence[int], group: _Group) -> list[list[int]]:
        size = max(1, PACK_TOKENS.get(self.stack.device.type, TOKENS_ON_A_GPU) // group.questions.tokens.numel())
        return [list(order[i : i + size]) for i in range(0, len(order), size)]

    @torch.inference_mode()
    def _clean(self, stack: BlockStack, group: _Group) -> Tensor:
        """float64 [1, choices of the group]."""
        answers = None if group.answers is None else group.answers.states[stack.n_layers][None]
        return _sums(stack, group, group.questions.states[stack.n_layers][None, :, -1], answers)

    @torch.inference_mode()
    def _patched(self, stack: BlockStack, group: _Group, patches: Sequence[Patch]) -> Tensor:
        """float64 [patches, choices of the group]."""
        (n_items, length), n_choices = group.questions.tokens.shape, len(group.owner)
        cache = PackedCache(len(patches) * n_items, length)
        asked = run_patched(
            stack,
            group.questions,
            list(range(n_items)) * len(patches),
            [p for p in patches for _ in range(n_items)],
            cache,
        )
        answered = None
        if group.answers is not None:
            owners = torch.cat([group.owner + n_items * i for i in range(len(patches))])
            longer = continued(cache, owners, length, group.answers.tokens.shape[1])
            edited = [p for p in patches for _ in range(n_choices)]
            answered = run_patched(stack, group.answers, list(range(n_choices)) * len(patches), edited, longer)
            answered = answered.view(len(patches), n_choices, *answered.shape[1:])
        return _sums(stack, group, asked[:, -1].view(len(patches), n_items, -1), answered)


def continued(cache: PackedCache, rows: Tensor, length: int, n_new: int) -> PackedCache:
    """A cache whose row i begins as row rows[i] of `cache` with its `length` slots, and has room for `n_new` more."""
    longer = PackedCache(len(rows), length + n_new)
    longer.take_prefix(cache, torch.arange(len(rows), device=rows.device), rows, length, length)
    return longer


def _sums(stack: BlockStack, group: _Group, asked: Tensor, answered: Tensor | None) -> Tensor:
    """Summed log-probabilities, float64 [patches, choices].

    Args:
        asked: [patches, items, d_model], the stream after the last block at each question's last token.
        answered: [patches, choices, q, d_model], at the choices' tokens but the last.
    """
    streams = asked[:, group.owner][:, :, None]
    if answered is not None:
        streams = torch.cat([streams, answered], dim=2)
    nll = torch.stack([nll_of(stack, each[group.rows, group.positions], group.targets) for each in streams])
    sums = torch.zeros((len(streams), len(group.owner)), dtype=torch.float64, device=nll.device)
    return sums.index_add_(1, group.rows, -nll.double())
