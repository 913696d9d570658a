"""What an intervention does to the model's predictions on texts that nobody steered: teacher-forced, so nothing is generated.

KL(clean || patched) is the mean over the unpatched model's own next tokens of how much less likely the patched model makes them: the
rise of its loss, in nats per token, on text as the unpatched model would have it. It is 0 for a patch that changes nothing, needs no
sampling, and grows without bound where the patched model rules out what the unpatched one says; the other order forgives that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Event

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.kv_cache import PackedCache
from emo_mlflow.steering.edits import Patch
from emo_mlflow.steering.forced import Forced, padded, run_clean, run_patched
from emo_mlflow.steering.likelihood import TOKENS_ON_A_GPU, logits_at_once
from emo_mlflow.steering.parallel import n_cores, on_threads
from emo_mlflow.types import FloatArray, Tokens

PACK_TOKENS = {"cpu": 1024}  # what stays in a CPU's cache
BATCH_TOKENS = {"cpu": 160}  # of the texts that are run beside each other; times patches, a pack
KEPT_BYTES = 512 * 2**20  # of clean log-probabilities, that are computed again for every pack otherwise


@dataclass(frozen=True, eq=False)
class Damage:
    """What each patch did to each scored token: those of a text from its third on, which follow an edited position.

    Attributes:
        kl: float32 [patches, tokens], KL(clean || patched) in nats of the prediction of the token.
        nll_rise: float32 [patches, tokens], by how much the token's own negative log-likelihood rose, in nats.
        same_top: bool [patches, tokens], whether both models hold the same token for the likeliest.
        text: int64 [tokens], which text each token is of.
    """

    kl: FloatArray
    nll_rise: FloatArray
    same_top: npt.NDArray[np.bool_]
    text: npt.NDArray[np.int64]

    @cached_property
    def mean_kl(self) -> npt.NDArray[np.float64]:
        """Nats per token, float64 [patches]; infinite where the patch made a prediction that is no number."""
        means = self.kl.astype(np.float64).mean(axis=1)
        return np.where(np.isfinite(means), means, np.inf)

    @property
    def perplexity_ratio(self) -> npt.NDArray[np.float64]:
        """Patched over clean perplexity, float64 [patches]."""
        return np.exp(self.nll_rise.astype(np.float64).mean(axis=1))

    def by_text(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """Each text's mean of values [patches, tokens], float64 [patches, texts]."""
        counts = np.bincount(self.text)
        return np.stack([np.bincount(self.text, row) / counts for row in values.astype(np.float64)])


@dataclass(frozen=True, eq=False)
class _Batch:
    """Texts that are run together.

    Attributes:
        rows, positions: int64 [tokens], where the scored tokens are predicted.
        targets: int64 [tokens].
        where: int64 [tokens], their numbers among all scored tokens.
    """

    forced: Forced
    rows: Tensor
    positions: Tensor
    targets: Tensor
    where: npt.NDArray[np.int64]


class DamageMeter:
    """Neutral texts that the unpatched model has read, against which patches are held.

    Args:
        texts: token ids, the document-start token first; at least three tokens each.
        boundaries: where patches will be (`Patch.boundary`); the clean stream is kept there.

    Attributes:
        norms: by boundary, the mean norm of the clean stream at the edited positions of scored tokens.

    Raises:
        UserError: if there is no text, or one is too short.
    """

    def __init__(self, stack: BlockStack, texts: Sequence[Tokens], boundaries: Collection[int]) -> None:
        if not texts or min(map(len, texts)) < 3:
            raise UserError(
                "damage is measured on neutral texts of at least three tokens each: give some, and no shorter ones"
            )
        self.stack = stack
        self.n_texts = len(texts)
        self.text = np.repeat(np.arange(len(texts)), [len(tokens) - 2 for tokens in texts])
        starts = np.concatenate([[0], np.cumsum([len(tokens) - 2 for tokens in texts])])
        self._batches = [self._read(texts, members, starts, boundaries) for members in self._members(texts)]
        self.norms = {boundary: self._norm(boundary) for boundary in boundaries}
        self._kept: dict[int, Tensor] = {}
        self._keeps = len(self.text) * stack.vocabulary * 4 <= KEPT_BYTES

    @property
    def n_batches(self) -> int:
        """Parts of the texts that can be measured alone; their order says nothing about them."""
        return len(self._batches)

    def _members(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """Texts of similar length together, in batches of a few; the first batch has texts of middling length."""
        most = BATCH_TOKENS.get(self.stack.device.type, TOKENS_ON_A_GPU)
        batches: list[list[int]] = [[]]
        for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
            longer = batches[-1] and self.stack.is_long(len(texts[i])) != self.stack.is_long(len(texts[batches[-1][0]]))
            if longer or (batches[-1] and len(texts[i]) * (len(batches[-1]) + 1) > most):
                batches.append([])
            batches[-1].append(i)
        middle = len(batches) // 2
        return [batches[middle], *batches[:middle], *batches[middle + 1 :]]

    def _read(
        self, texts: Sequence[Tokens], members: list[int], starts: npt.NDArray[np.int64], boundaries: Collection[int]
    ) -> _Batch:
        device = self.stack.device
        tokens = padded([texts[i] for i in members], device)
        forced = run_clean(self.stack, tokens, boundaries, PackedCache(*tokens.shape))
        spots = [(row, position) for row, i in enumerate(members) for position in range(1, len(texts[i]) - 1)]
        rows, positions = torch.tensor(spots, dtype=torch.long, device=device).T
        where = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])
        return _Batch(forced, rows, positions, tokens[rows, positions + 1], where)

    def _norm(self, boundary: int) -> float:
        streams = [batch.forced.states[boundary][batch.rows, batch.positions].float() for batch in self._batches]
        return float(torch.cat(streams).norm(dim=-1).mean())

    def measure(self, patches: Sequence[Patch], batches: int | None = None) -> Damage:
        """The damage of each patch, at its first alpha.

        Args:
            batches: how many of the batches to use, for a first guess; None for all. Tokens that were left out are not in the result.
        """
        used = self._batches[:batches]
        order = sorted(range(len(patches)), key=lambda i: patches[i].boundary)
        jobs = [(batch, part) for batch in range(len(used)) for part in self._packs(order, used[batch])]
        found = np.zeros((3, len(patches), len(self.text)), np.float32)
        n = max(1, min(n_cores(self.stack), len(jobs)))

        def work(stack: BlockStack, thread: int, stop: Event) -> None:
            for number, part in jobs[thread::n]:
                if stop.is_set():
                    return
                batch = used[number]
                values = self._compare(stack, number, [patches[i] for i in part])
                found[:, np.array(part)[:, None], batch.where] = values.cpu().numpy()

        on_threads(self.stack, n, work)
        tokens = np.sort(np.concatenate([batch.where for batch in used]))
        kl, rise, same = found[:, :, tokens]
        return Damage(kl, rise, same > 0, self.text[tokens])

    def _packs(self, order: Sequence[int], batch: _Batch) -> list[list[int]]:
        most = PACK_TOKENS.get(self.stack.device.type, TOKENS_ON_A_GPU)
        size = max(1, most // batch.forced.tokens.numel())
        return [list(order[i : i + size]) for i in range(0, len(order), size)]

    @torch.inference_mode()
    def _compare(self, stack: BlockStack, number: int, patches: Sequence[Patch]) -> Tensor:
        """KL, rise of the NLL and same top token, float32 [3, patches, tokens of the batch]."""
        batch = self._batches[number]
        n_texts, q = batch.forced.tokens.shape
        texts = list(range(n_texts)) * len(patches)
        rows = [patch for patch in patches for _ in range(n_texts)]
        finals = run_patched(stack, batch.forced, texts, rows, PackedCache(len(rows), q))
        finals = finals.view(len(patches), n_texts, q, -1)[:, batch.rows, batch.positions]
        clean = self._clean(stack, number)
        most = logits_at_once(stack)
        parts = []
        for tokens in torch.arange(len(batch.targets), device=stack.device).split(most):
            part = [
                _against(
                    clean[tokens],
                    stack.logits(some.flatten(0, 1)[:, None]).view(len(some), len(tokens), -1),
                    batch.targets[tokens],
                )
                for some in finals[:, tokens].split(max(1, most // len(tokens)))
            ]
            parts.append(torch.cat(part, dim=1))
        return torch.cat(parts, dim=2)

    def _clean(self, stack: BlockStack, number: int) -> Tensor:
        """Clean log-probabilities of a batch, float32 [tokens, vocabulary]."""
        if number in self._kept:
            return self._kept[number]
        batch = self._batches[number]
        finals = batch.forced.states[stack.n_layers][batch.rows, batch.positions]
        found = stack.logits(finals[:, None])[:, 0].log_softmax(dim=-1)
        if self._keeps:
            self._kept[number] = found
        return found


def _against(clean: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """KL, rise of the NLL and same top token, float32 [3, patches, tokens]; the patched logits are [patches, tokens, vocabulary]."""
    probabilities = clean.exp()
    total = logits.logsumexp(dim=-1)
    expected = torch.einsum("tv,ptv->pt", probabilities, logits)
    kl = total - expected - torch.special.entr(probabilities).sum(dim=-1)
    nll = total - logits.gather(-1, targets.expand(len(logits), -1)[..., None])[..., 0]
    rise = nll + clean.gather(-1, targets[:, None])[:, 0]
    same = logits.argmax(dim=-1) == clean.argmax(dim=-1)
    return torch.stack([kl, rise, same.float()])
