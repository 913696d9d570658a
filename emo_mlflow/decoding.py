"""One pack of rows, decoded step by step, each row under its own intervention.

The definition is the forward pass without a cache (steering.py). What makes it cheap: a prompt is run once for all its rows; below
the edited boundary a row needs one token a step; above it, only positions whose keys and values became stale are run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emo_mlflow.layers import BlockStack, Entry, find_output_projection, input_edit
from emo_mlflow.packing import Layout, Prefill, Row
from emo_mlflow.steering import HeadEdits, RowEdits, first_stale_position, patched_positions

COMPACT_BELOW = 0.75


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        n_steps: new tokens per text, at most.
        min_new_tokens: end-of-sequence tokens are not chosen at earlier steps.
        temperature: 0 for greedy decoding.
        eos_ids: the tokens that end a text.
    """

    n_steps: int
    min_new_tokens: int
    temperature: float
    eos_ids: tuple[int, ...]


@dataclass(frozen=True)
class Decoded:
    """The new tokens of one row, without the end-of-sequence token.

    Attributes:
        n_patched: distinct positions at which the residual stream was edited.
        overflow_step: the step whose logits were not finite, or None.
    """

    row: Row
    tokens: tuple[int, ...]
    n_patched: int
    overflow_step: int | None


class PackDecoder:
    """Decodes rows that agree on `packing.pack_key`."""

    def __init__(self, stack: BlockStack, rows: Sequence[Row], decoding: Decoding) -> None:
        self.stack = stack
        self.decoding = decoding
        never = stack.n_layers + 1
        self.rows = sorted(rows, key=lambda row: row.patch.boundary if row.patch else never)
        self.boundaries = [row.patch.boundary if row.patch else never for row in self.rows]
        self.lead = next((row.patch for row in self.rows if row.patch), None)
        n_steps, device = decoding.n_steps, stack.device
        interventions = [row.patch for row in self.rows]
        self.edits = RowEdits(interventions, stack.d_model, n_steps, device, stack.dtype)
        self.heads = HeadEdits(interventions, device, stack.dtype)
        prompts = [row.tokens for row in self.rows]
        self.prefill = Prefill(stack, prompts, all_positions=self.lead is not None and self.lead.scope == "all")
        self.layout = Layout(self.prefill, prompts, n_steps, device)
        self.tokens = torch.zeros((len(self.rows), n_steps), dtype=torch.long, device=device)
        self.overflow = torch.full((len(self.rows),), -1, dtype=torch.long, device=device)
        self.patched = torch.zeros_like(self.tokens)
        windowed = self.lead is not None and self.lead.scope == "window"
        # The clean stream at each row's own boundary, kept to edit positions of the window again at later steps.
        self.clean = torch.zeros(
            (len(self.rows), n_steps if windowed else 0, stack.d_model), dtype=stack.dtype, device=device
        )

    @torch.inference_mode()
    def run(self) -> list[Decoded]:
        """Decodes all rows; finished rows leave the batch."""
        finished: list[Decoded] = []
        may_stop = self.decoding.min_new_tokens < self.decoding.n_steps
        for step in range(self.decoding.n_steps):
            hidden = self._first_pass() if step == 0 else self._next_pass(step)
            self._choose(step, self.stack.logits(hidden)[:, -1])
            if step == 0 and self.lead is not None and self.lead.scope == "window":
                self.layout.fill()  # the last prompt token was edited for this step only
            if may_stop:
                finished += self._retire(step)
                if not self.rows:
                    return finished
        return finished + self._harvest(torch.ones(len(self.rows), dtype=torch.bool), self.decoding.n_steps)

    def _span(self, boundary: int) -> slice:
        first = sum(b < boundary for b in self.boundaries)
        return slice(first, first + self.boundaries.count(boundary))

    def _edit(self, hidden: Tensor, rows: slice, step: int) -> Tensor:
        """Edits the last q positions before step `step` chooses, and counts those that are edited for the first time."""
        inside = self._inside(hidden.shape[1], step)
        self.patched[rows, step] = sum(inside) if step == 0 else int(inside[-1])
        mask = None if all(inside) else torch.tensor(inside, device=hidden.device)
        return self.edits.apply(hidden, rows, step, mask)

    def _inside(self, q: int, step: int) -> list[bool]:
        """Which of the last q positions before step `step` chooses are patched."""
        assert self.lead is not None
        prompt_length = q if step == 0 else 1  # positions count from the first one that any step can edit
        end = prompt_length + step
        edited = patched_positions(self.lead.scope, self.lead.window, prompt_length, step)
        return [position in edited for position in range(end - q, end)]

    def _states(self, boundary: int, rows: slice, last_only: bool) -> Tensor:
        """The prompts' clean residual stream at a boundary, [len(rows), q, d_model]."""
        picked = [self.prefill.states[self.prefill.index[row.tokens]][boundary] for row in self.rows[rows]]
        return torch.stack([state[-1:] for state in picked] if last_only else picked)

    def _first_pass(self) -> Tensor:
        """Step 0: each row enters the blocks at its own boundary, from its prompt's clean stream. [rows, 1, d_model]."""
        n_layers, layout = self.stack.n_layers, self.layout
        if self.lead is None:
            return self._states(n_layers, slice(0, len(self.rows)), last_only=True)
        q = layout.end if self.lead.scope == "all" else 1
        layout.cache.start = layout.end - q
        chunk = torch.tensor([row.tokens[-q:] for row in self.rows], dtype=torch.long, device=self.stack.device)
        entry = self.stack.enter(chunk, layout.positions(layout.end - q, layout.end), layout.cache, layout.visible(layout.end))
        above = entry.hidden[:0]
        for boundary in range(n_layers + 1):
            span = self._span(boundary)
            if span.stop > span.start:
                clean = self._states(boundary, span, last_only=q == 1)
                above = torch.cat([above, self._edit(clean, span, 0)])
            if boundary < n_layers and len(above):
                above = self._block(boundary, above, entry, slice(0, len(above)), 0)
        rest = slice(len(above), len(self.rows))
        baselines = [self._states(n_layers, rest, last_only=True)] if rest.stop > rest.start else []
        return torch.cat([above[:, -1:], *baselines])

    def _next_pass(self, step: int) -> Tensor:
        """Step t > 0: the newest token through all blocks; above a row's boundary its stale positions too."""
        lead, layout, n_layers = self.lead, self.layout, self.stack.n_layers
        end = layout.end + step
        q = 1
        if lead is not None:
            q = end - first_stale_position(lead.scope, lead.window, layout.end, step, lead.constant)
        newest = self._enter(step, 1)
        again = newest if q == 1 else self._enter(step, q)
        below, above = newest.hidden, again.hidden[:0]
        for boundary in range(n_layers + 1):
            span = self._span(boundary)
            if span.stop > span.start:
                count = span.stop - span.start
                stream = self._with_history(below[:count], span, step, q)
                edited = self._edit(stream, span, step)
                above, below = torch.cat([above, edited]), below[count:]
            if boundary == n_layers:
                break
            n_above = len(above)
            if q == 1:
                both = torch.cat([above, below]) if n_above and len(below) else (above if n_above else below)
                both = self._block(boundary, both, newest, slice(0, len(self.rows)), step)
                above, below = both[:n_above], both[n_above:]
                continue
            if n_above:
                above = self._block(boundary, above, again, slice(0, n_above), step)
            if len(below):
                below = self._block(boundary, below, newest, slice(n_above, len(self.rows)), step)
        return torch.cat([above[:, -1:], below])

    def _enter(self, step: int, q: int) -> Entry:
        layout, end = self.layout, self.layout.end + step
        layout.cache.start = end - q
        return self.stack.enter(
            self.tokens[:, step - q : step], layout.positions(end - q, end), layout.cache, layout.visible(end)
        )

    def _with_history(self, newest: Tensor, rows: slice, step: int, q: int) -> Tensor:
        """Appends the newest token's clean stream to what the row keeps, and returns the last q positions."""
        if self.clean.shape[1]:
            self.clean[rows, step - 1] = newest[:, 0]
        return newest if q == 1 else self.clean[rows, step - q : step]

    def _block(self, layer: int, hidden: Tensor, entry: Entry, rows: slice, step: int) -> Tensor:
        """Block `layer` on the newest hidden.shape[1] positions before step `step` chooses."""
        self.layout.cache.start = self.layout.end + step - hidden.shape[1]
        self.layout.cache.select(rows)
        if layer not in self.heads or rows.start > 0:  # rows whose head is replaced here come first
            return self.stack.run_block(layer, hidden, entry, rows)
        inside = self._inside(hidden.shape[1], step)
        projection = find_output_projection(self.stack.blocks[layer])
        with input_edit(projection, lambda mixed: self.heads.apply(layer, mixed, inside)):
            return self.stack.run_block(layer, hidden, entry, rows)

    def _choose(self, step: int, logits: Tensor) -> None:
        """Writes the token of step `step` for every row; logits float32 [rows, vocabulary]."""
        if step < self.decoding.min_new_tokens:
            logits[:, list(self.decoding.eos_ids)] = -torch.inf
        if self.decoding.temperature > 0:
            logits = logits / self.decoding.temperature + self._noise(step, logits.shape[1])
        best, token = logits.max(dim=-1)
        self.tokens[:, step] = token
        broken = ~torch.isfinite(best) & (self.overflow < 0)
        self.overflow = torch.where(broken, step, self.overflow)

    def _noise(self, step: int, vocabulary: int) -> Tensor:
        """Gumbel noise [rows, vocabulary]: adding it to logits and taking the largest is sampling from their softmax."""
        drawn: dict[int, Tensor] = {}
        for seed in dict.fromkeys(row.noise_seed for row in self.rows):
            generator = torch.Generator().manual_seed((seed + step * 0x9E3779B97F4A7C15) % 2**63)
            drawn[seed] = -torch.empty(vocabulary).exponential_(generator=generator).log()
        order = {seed: i for i, seed in enumerate(drawn)}
        picks = torch.tensor([order[row.noise_seed] for row in self.rows], device=self.stack.device)
        return torch.stack(list(drawn.values())).to(self.stack.device)[picks]

    def _retire(self, step: int) -> list[Decoded]:
        """Takes out rows that have ended, once enough have for the copy to pay."""
        eos = torch.tensor(self.decoding.eos_ids, device=self.tokens.device)
        ended = torch.isin(self.tokens[:, : step + 1], eos).any(dim=1).cpu()
        alive = int((~ended).sum())
        if alive > COMPACT_BELOW * len(self.rows):
            return []
        done = self._harvest(ended, step + 1)
        keep = torch.nonzero(~ended).flatten()
        self.rows = [self.rows[i] for i in keep.tolist()]
        self.boundaries = [self.boundaries[i] for i in keep.tolist()]
        keep = keep.to(self.stack.device)
        self.layout.keep(keep)
        self.edits.keep(keep)
        self.heads = HeadEdits([row.patch for row in self.rows], self.stack.device, self.stack.dtype)
        self.tokens, self.clean = self.tokens[keep], self.clean[keep]
        self.overflow, self.patched = self.overflow[keep], self.patched[keep]
        return done

    def _harvest(self, which: Tensor, n_tokens: int) -> list[Decoded]:
        """The results of the rows where `which` (bool [rows], on the CPU) holds."""
        eos = set(self.decoding.eos_ids)
        tokens = self.tokens[:, :n_tokens].tolist()
        overflow, patched = self.overflow.tolist(), self.patched.tolist()
        done: list[Decoded] = []
        for i in torch.nonzero(which).flatten().tolist():
            ends = [j for j, token in enumerate(tokens[i]) if token in eos]
            kept = tuple(tokens[i][: ends[0]] if ends else tokens[i])
            step = overflow[i] if 0 <= overflow[i] <= len(kept) else None
            done.append(Decoded(self.rows[i], kept, sum(patched[i][: len(kept) + 1]), step))
        return done
