"""One pack of rows, decoded step by step, each row under its own intervention.

The definition is the forward pass without a cache (edits.py). What makes it cheap: a prompt is run once for all its rows; below
the edited boundary a row needs one token a step; above it, only positions whose keys and values became stale are run again; and the
likelihood under the unpatched model starts from the clean stream at the boundary, which decoding has computed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from emo_mlflow.common import progress
from emo_mlflow.models.blocks import BlockStack, Entry, input_edit
from emo_mlflow.models.families import find_output_projection
from emo_mlflow.steering.edits import FurtherEdits, HeadEdits, RowEdits
from emo_mlflow.steering.likelihood import token_nll
from emo_mlflow.steering.packing import Layout, Prefill, Row
from emo_mlflow.steering.parallel import Stopped
from emo_mlflow.steering.positions import edits_prompts, first_stale_position, n_last_patched, n_patched
from emo_mlflow.steering.sampling import Decoding, gumbel_noise
from emo_mlflow.types import Scope, Tokens

COMPACT_BELOW = 0.75
UNKNOWN = (float("nan"), float("nan"))
OnStep = Callable[[Sequence[Row], Tensor], None]


@dataclass(frozen=True)
class Decoded:
    """The new tokens of one row, without the end-of-sequence token.

    Attributes:
        n_patched: distinct positions at which the residual stream was edited.
        nll: mean negative log-likelihood (nats) per new token under the unpatched model; NaN for an empty or overflowing text.
        nll_sd: its standard deviation over the tokens.
        overflow_step: the step whose logits were not finite, or None.
    """

    row: Row
    tokens: tuple[int, ...]
    n_patched: int
    nll: float
    nll_sd: float
    overflow_step: int | None


class PackDecoder:
    """Decodes rows that agree on `packing.pack_key`.

    Rows are sorted by the boundary at which they are edited, so that at any block the rows edited below it come first. A baseline is
    a row that is edited by nothing at the last boundary.
    """

    def __init__(self, stack: BlockStack, rows: Sequence[Row], decoding: Decoding) -> None:
        self.stack = stack
        self.decoding = decoding
        self.rows = sorted(rows, key=self._boundary)
        lead = next((row.patch for row in self.rows if row.patch), None)
        self.scope: Scope = lead.scope if lead else "generated"
        self.window = lead.window if lead else None
        self.constant = lead.constant if lead else True
        prompts = [row.tokens for row in self.rows]
        n_rows, n_steps, device = len(self.rows), decoding.n_steps, stack.device
        self.layout = Layout(Prefill(stack, prompts, all_positions=edits_prompts(self.scope)), prompts, n_steps, device)
        self.eos = torch.tensor(decoding.eos_ids, dtype=torch.long, device=device)
        self.absent = torch.tensor(decoding.absent_ids, dtype=torch.long, device=device)
        self.tokens = torch.zeros((n_rows, n_steps), dtype=torch.long, device=device)
        self.overflow = torch.full((n_rows,), -1, dtype=torch.long, device=device)
        self.ended = torch.zeros(n_rows, dtype=torch.bool, device=device)
        # The clean stream at each row's own boundary: edited again under a window, and where the likelihood starts from.
        self.clean = torch.zeros((n_rows, n_steps, stack.d_model), dtype=stack.dtype, device=device)
        # Under a window, the clean stream after the last block, of positions that have left it.
        windowed = n_steps if self.scope == "window" else 0
        self.finals = torch.zeros((n_rows, windowed, stack.d_model), dtype=stack.dtype, device=device)
        self.edits = RowEdits([row.patch for row in self.rows], stack.d_model, n_steps, device, stack.dtype)
        self._index_rows()

    def _boundary(self, row: Row) -> int:
        return row.patch.boundary if row.patch else self.stack.n_layers

    def _index_rows(self) -> None:
        """What is looked up by row, for the rows that are left."""
        device = self.stack.device
        self.boundaries = [self._boundary(row) for row in self.rows]
        self.spans = [
            slice(bisect_left(self.boundaries, boundary), bisect_right(self.boundaries, boundary))
            for boundary in range(self.stack.n_layers + 1)
        ]
        patches = [row.patch for row in self.rows]
        self.heads = HeadEdits(patches, device, self.stack.dtype)
        self.further = FurtherEdits(patches, self.stack.d_model, self.decoding.n_steps, device, self.stack.dtype)
        seeds = {seed: i for i, seed in enumerate(dict.fromkeys(row.noise_seed % 2**63 for row in self.rows))}
        self.seeds = torch.tensor(list(seeds), dtype=torch.long, device=device)
        self.seed_of_row = torch.tensor([seeds[row.noise_seed % 2**63] for row in self.rows], device=device)

    @torch.inference_mode()
    def run(self, stop: Event | None = None, on_step: OnStep | None = None) -> list[Decoded]:
        """Decodes all rows; finished rows leave the batch.

        Args:
            on_step: called after each step with the rows that are left and their new tokens so far, int64 [rows, steps].

        Raises:
            Stopped: at the first step after `stop` was set.
        """
        finished: list[Decoded] = []
        may_stop = self.decoding.min_new_tokens < self.decoding.n_steps
        for step in range(self.decoding.n_steps):
            if stop is not None and stop.is_set():
                raise Stopped
            hidden = self._first_pass() if step == 0 else self._next_pass(step)
            self._choose(step, self.stack.logits(hidden)[:, -1])
            if on_step is not None:
                on_step(self.rows, self.tokens[:, : step + 1])
            if step == 0 and self.scope == "window":
                self.layout.fill()  # the last prompt token was edited for this step only
            progress.advance(progress.WRITING, len(self.rows) / self.decoding.n_steps)
            if may_stop and step + 1 < self.decoding.n_steps:
                finished += self._retire(step + 1)
                if not self.rows:
                    return finished
        return finished + self._harvest(range(len(self.rows)), self.layout, self.decoding.n_steps)

    def _n_last(self, q: int, step: int) -> int:
        """How many of the last q positions before step `step` chooses are edited; they are the last ones of these."""
        return n_last_patched(self.scope, self.window, self.layout.end, step, q)

    def _first_pass(self) -> Tensor:
        """Step 0: each row enters the blocks at its own boundary, from its prompt's clean stream. [rows, 1, d_model]."""
        layout = self.layout
        q = self._n_last(layout.end, 0)
        chunk = torch.tensor([row.tokens[-q:] for row in self.rows], dtype=torch.long, device=self.stack.device)
        entry = layout.enter(self.stack, chunk, layout.end - q, slice(0, len(self.rows)))
        hidden = entry.hidden[:0]
        for boundary, span in enumerate(self.spans):
            if span.stop > span.start:
                hidden = torch.cat([hidden, self.edits.apply(layout.states(boundary, span)[:, -q:], span, 0)])
            self.further.apply(boundary, hidden, q, 0)
            if boundary < self.stack.n_layers and len(hidden):
                hidden = self._block(boundary, hidden, entry, slice(0, len(hidden)), 0)
        return hidden[:, -1:]

    def _next_pass(self, step: int) -> Tensor:
        """Step t > 0: the stream after the last block at the newest position, [rows, 1, d_model]."""
        end = self.layout.end + step
        newest = self._enter(step, 1)
        q = end - first_stale_position(self.scope, self.window, self.layout.end, step, self.constant)
        return self._one_position(newest, step) if q == 1 else self._stale_positions(newest, step, q)

    def _one_position(self, newest: Entry, step: int) -> Tensor:
        """The newest token through all blocks, edited on its way."""
        everyone, n_last = slice(0, len(self.rows)), self._n_last(1, step)
        hidden = newest.hidden
        for boundary, span in enumerate(self.spans):
            if span.stop > span.start:
                self.clean[span, step - 1] = hidden[span, 0]
                if n_last:
                    hidden[span] = self.edits.apply(hidden[span], span, step)
            self.further.apply(boundary, hidden, n_last, step)
            if boundary < self.stack.n_layers:
                hidden = self._block(boundary, hidden, newest, everyone, step)
        return hidden

    def _stale_positions(self, newest: Entry, step: int, q: int) -> Tensor:
        """The newest token below each row's boundary, the last q above."""
        again = self._enter(step, q)
        n_last = self._n_last(q, step)
        below, above = newest.hidden, again.hidden[:0]
        for boundary, span in enumerate(self.spans):
            if count := span.stop - span.start:
                self.clean[span, step - 1] = below[:count, 0]
                history = self.clean[span, step - q : step]
                edited = self.edits.apply(history[:, q - n_last :], span, step)
                above = torch.cat([above, torch.cat([history[:, : q - n_last], edited], dim=1)])
                below = below[count:]
            self.further.apply(boundary, above, n_last, step)
            if boundary == self.stack.n_layers:
                break
            if n_above := len(above):
                above = self._block(boundary, above, again, slice(0, n_above), step)
            if len(below):
                below = self._block(boundary, below, newest, slice(n_above, len(self.rows)), step)
        if q > n_last:
            self.finals[:, step - q] = above[:, 0]
        return above[:, -1:]

    def _enter(self, step: int, q: int) -> Entry:
        start, everyone = self.layout.end + step - q, slice(0, len(self.rows))
        return self.layout.enter(self.stack, self.tokens[:, step - q : step], start, everyone)

    def _block(self, layer: int, hidden: Tensor, entry: Entry, rows: slice, step: int) -> Tensor:
        """Block `layer` on the newest hidden.shape[1] positions before step `step` chooses."""
        q = hidden.shape[1]
        self.layout.cache.start = self.layout.end + step - q
        self.layout.cache.select(rows)
        if layer not in self.heads or rows.start > 0:  # rows whose head is replaced here come first
            return self.stack.run_block(layer, hidden, entry, rows)
        projection, n_last = find_output_projection(self.stack.blocks[layer]), self._n_last(q, step)
        with input_edit(projection, lambda mixed: self.heads.apply(layer, mixed, n_last)):
            return self.stack.run_block(layer, hidden, entry, rows)

    def _choose(self, step: int, logits: Tensor) -> None:
        """Writes the token of step `step` for every row; logits float32 [rows, vocabulary]."""
        if len(self.absent):
            logits.index_fill_(1, self.absent, -torch.inf)
        if step < self.decoding.min_new_tokens:
            logits.index_fill_(1, self.eos, -torch.inf)
        if self.decoding.temperature > 0:
            noise = gumbel_noise(self.seeds, step, logits.shape[1])
            logits = logits / self.decoding.temperature + noise[self.seed_of_row]
        best, token = logits.max(dim=-1)
        self.tokens[:, step] = token
        broken = ~torch.isfinite(best) & (self.overflow < 0)
        self.overflow = torch.where(broken, step, self.overflow)
        self.ended |= torch.isin(token, self.eos)

    def _retire(self, n: int) -> list[Decoded]:
        """After n steps, takes out rows that have ended, once enough have for the copy to pay."""
        ended = self.ended.tolist()
        leaving = [i for i, row_ended in enumerate(ended) if row_ended]
        staying = [i for i, row_ended in enumerate(ended) if not row_ended]
        if len(staying) > COMPACT_BELOW * len(ended):
            return []
        layout = self.layout.take(leaving) if staying else self.layout
        done = self._harvest(leaving, layout, n)
        if staying:
            self.layout.keep(staying)
        index = torch.tensor(staying, dtype=torch.long, device=self.stack.device)
        self.rows = [self.rows[i] for i in staying]
        self.edits.keep(index)
        self.tokens, self.overflow, self.ended = self.tokens[index], self.overflow[index], self.ended[index]
        self.clean, self.finals = self.clean[index], self.finals[index]
        self._index_rows()
        return done

    def _harvest(self, which: Sequence[int], layout: Layout, n: int) -> list[Decoded]:
        """The results of rows after n steps; `layout` holds these rows only, and is spent."""
        eos = set(self.decoding.eos_ids)
        tokens, overflow = self.tokens[:, :n].tolist(), self.overflow.tolist()
        found: list[tuple[int, tuple[int, ...], int | None]] = []
        for i in which:
            end = next((j for j, token in enumerate(tokens[i]) if token in eos), n)
            broken = overflow[i] if 0 <= overflow[i] <= end else None
            found.append((i, tuple(tokens[i][:end]), broken))
        nll = self._likelihoods(found, layout, n)
        decoded = []
        for i, kept, broken in found:
            row = self.rows[i]  # one that did not ask has no likelihood, whichever rows it was packed with
            asked = row.with_nll and row.likely_after is None
            values = nll.get((row.tokens, kept), UNKNOWN) if asked else UNKNOWN
            decoded.append(Decoded(row, kept, self._n_patched(i, len(kept)), *values, broken))
        return decoded

    def _n_patched(self, i: int, n_tokens: int) -> int:
        """Positions patched in a row's own passes: one pass for each token, and for the end-of-sequence token if there was one."""
        row, passes = self.rows[i], min(n_tokens + 1, self.decoding.n_steps)
        return n_patched(self.scope, self.window, len(row.tokens), passes) if row.patch else 0

    def _likelihoods(
        self, found: Sequence[tuple[int, tuple[int, ...], int | None]], layout: Layout, n: int
    ) -> dict[tuple[Tokens, Tokens], tuple[float, float]]:
        """Mean and standard deviation of the NLL of each distinct (prompt, text), from the row that shares it whose boundary is highest."""
        rows = {
            (self.rows[i].tokens, kept): (at, i)
            for at, (i, kept, broken) in enumerate(found)
            if kept and broken is None and self.rows[i].with_nll and self.rows[i].likely_after is None
        }
        if not rows:
            return {}
        if self.scope != "window":
            layout.fill()
        picked = sorted(rows.values())
        if len(picked) < len(found):
            layout.keep([at for at, _ in picked])
        index = torch.tensor([i for _, i in picked], device=self.stack.device)
        left = max(0, n - 1 - self.window) if self.window is not None and self.scope == "window" else 0
        finals = torch.cat([layout.states(self.stack.n_layers, slice(None))[:, -1:], self.finals[index, :left]], dim=1)
        nll = token_nll(
            self.stack, layout, self.tokens[index, :n], [self.boundaries[i] for _, i in picked], self.clean[index, left : n - 1], finals
        )
        order = {at: line for line, (at, _) in enumerate(picked)}
        lines = {key: nll[order[at], : len(key[1])].double() for key, (at, _) in rows.items()}
        return {key: (float(line.mean()), float(line.std(correction=0))) for key, line in lines.items()}
