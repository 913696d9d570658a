"""The decoder blocks of a Hugging Face model, run one at a time.

A causal language model is an entry (embedding, positions, masks), a stack of blocks, and an exit (final norm, logits). What
a block is called with differs between families and versions of transformers; so the model's own forward is run with
its blocks replaced by stand-ins that record the call, and the recorded calls are made to the real blocks. No family has code here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.models.entry import Entry, take_rows
from emo_mlflow.models.families import another_family, context_of, find_blocks, switch_of_positions
from emo_mlflow.models.kv_cache import PackedCache
from emo_mlflow.models.output_maps import padded_to_align, sliced


@contextmanager
def input_edit(module: nn.Module, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the module is called with its first argument edited."""
    handle = module.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _matrix_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


class BlockStack:
    """A causal language model as entry, blocks and exit.

    Boundary l is the residual stream before block l, for l in 0..n_layers-1; boundary n_layers is the stream after the last
    block, before the final norm. `resid_pre` of layer l is boundary l and `resid_post` is boundary l + 1.

    Attributes:
        flops: floating-point operations in products with weights that have been done so far; attention's own are not counted.
        switch: texts of more tokens have another position encoding, for their first tokens too (families.switch_of_positions), or None.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        try:
            self._take(model)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # foreign code that is called in a way that it does not know raises anything
            raise UserError(
                f"{type(model).__name__} cannot be steered: its blocks do not run one by one ({type(error).__name__}: {reason_of(error, 150)}); "
                f"{another_family()}"
            ) from None

    def _take(self, model: PreTrainedModel) -> None:
        self.model = model
        self.blocks = find_blocks(model)
        self.n_layers = len(self.blocks)
        self.device = model.device
        self.dtype = model.dtype
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.flops = 0.0
        self.switch = switch_of_positions(model)
        self._context = context_of(model.config.get_text_config())
        self._block_sizes = [_matrix_elements(block) for block in self.blocks]
        self._head_size = _matrix_elements(model.get_output_embeddings())
        self._project = self._faster_head()
        self._replicas: list[BlockStack] = []
        self._returns_tuple = False
        self._returns_tuple = self._block_returns_tuple()
        self.d_model, self.bytes_per_slot = self._verify()

    def replicas(self, n: int) -> Sequence[BlockStack]:
        """Stacks with the same weights, in the same memory, for n threads: the blocks of one stack have one caller at a time."""
        while len(self._replicas) < n:
            tensors = [*self.model.parameters(), *self.model.buffers()]
            twin = copy(self)
            twin.model = deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
            twin.blocks = find_blocks(twin.model)
            twin.flops = 0.0
            twin._project = twin._faster_head()
            self._replicas.append(twin)
        return self._replicas[:n]

    def _faster_head(self) -> Callable[[Tensor], Tensor] | None:
        head = self.model.get_output_embeddings()
        return sliced(head) or padded_to_align(head)

    @torch.inference_mode()
    def _block_returns_tuple(self) -> bool:
        seen: list[bool] = []
        handle = self.blocks[0].register_forward_hook(lambda module, args, output: seen.append(isinstance(output, tuple)))
        try:
            self.model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device), use_cache=False)
        finally:
            handle.remove()
        return seen[0]

    @contextmanager
    def _stand_ins(self, exit_hidden: Tensor | None) -> Iterator[list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]]]:
        """Replaces every block's forward by one that records its call; the last hands out `exit_hidden` if given."""
        calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

        def stand_in(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append((hidden_states, args, kwargs))
            hidden = exit_hidden if exit_hidden is not None and len(calls) == self.n_layers else hidden_states
            return (hidden,) if self._returns_tuple else hidden

        try:
            for block in self.blocks:
                block.forward = stand_in
            yield calls
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)

    @torch.inference_mode()
    def enter(self, tokens: Tensor, positions: Tensor, cache: PackedCache, mask: Tensor | None = None) -> Entry:
        """Embeds tokens that continue what `cache` holds.

        Args:
            tokens: int64 [rows, q].
            positions: int64 [rows, q], each token's position in its own text.
            cache: its `start` is the number of slots before these tokens.
            mask: int64 [rows, start + q], 0 for slots that hold nothing of a row; None if all do.
        """
        with self._stand_ins(None) as calls:
            self.model.base_model(
                input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
            )
        return Entry(calls[0][0], [(args, kwargs) for _, args, kwargs in calls])

    def run_block(self, layer: int, hidden: Tensor, entry: Entry, rows: slice) -> Tensor:
        """Block `layer` on the rows `rows` of the batch that `entry` was made for; hidden is [len(rows), q, d_model]."""
        args, kwargs = entry.calls[layer]
        n_rows = entry.hidden.shape[0]
        if hidden.shape[0] != n_rows:
            args = tuple(take_rows(value, rows, n_rows) for value in args)
            kwargs = {name: take_rows(value, rows, n_rows) for name, value in kwargs.items()}
        self.flops += 2.0 * self._block_sizes[layer] * hidden.shape[0] * hidden.shape[1]
        output = self.blocks[layer](hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [rows, q, vocabulary] of the residual stream after the last block, hidden [rows, q, d_model]."""
        self.flops += 2.0 * self._head_size * hidden.shape[0] * hidden.shape[1]
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        head = self.model.get_output_embeddings()
        with self._stand_ins(hidden):
            try:
                if self._project is not None:
                    vars(head)["forward"] = self._project
                return self.model(input_ids=tokens, use_cache=False).logits.float()
            finally:
                vars(head).pop("forward", None)

    @torch.inference_mode()
    def boundaries(self, tokens: Tensor, cache: PackedCache | None = None, start: int = 0) -> Iterator[Tensor]:
        """Runs texts of one length, yielding the residual stream [rows, q, d_model] at boundaries 0..n_layers.

        Args:
            start: tokens of each text that `cache` holds already.

        Raises:
            UserError: for texts past the model's context, of which some models fail and others say what means nothing.
        """
        rows, length = tokens.shape
        if start + length > self._context:
            raise UserError(f"a text has {start + length} tokens, more than the model's context of {self._context}: shorten it")
        cache = PackedCache(rows, length) if cache is None else cache
        cache.start = start
        positions = torch.arange(start, start + length, device=tokens.device).expand(rows, length)
        entry = self.enter(tokens, positions, cache)
        hidden = entry.hidden
        yield hidden
        for layer in range(self.n_layers):
            hidden = self.run_block(layer, hidden, entry, slice(0, rows))
            yield hidden

    def is_long(self, length: int, n_new: int = 0) -> bool:
        """Which position encoding a text has; texts of both kinds are never run together.

        Args:
            length: tokens that are read before the first of `n_new` is written; of the last one nothing is read.

        Raises:
            UserError: if it begins with one and ends with the other, for what was read would have to be read again.
        """
        if self.switch is None or length + max(0, n_new - 1) <= self.switch:
            return False
        if length <= self.switch:
            raise UserError(
                f"a text of {length} tokens with {n_new} new ones crosses {self.switch} tokens, where {type(self.model).__name__} takes another "
                "position encoding for the whole text: give shorter texts, or fewer new tokens, or texts that are longer from the start"
            )
        return True

    @torch.inference_mode()
    def check_lengths(self, lengths: Collection[int], n_new: int) -> None:
        """Checks that texts of these lengths give what the model's own forward gives of each alone, with a cache and beside each other.

        Raises:
            UserError: if they do not; as `is_long`.
        """
        alike: dict[bool, list[int]] = {}
        for length in lengths:
            alike.setdefault(self.is_long(length, n_new), []).append(length)
        for group in alike.values():
            shortest, longest = min(group), max(group)
            if n_new < 2:  # nothing is read after the prompts
                continue
            gap, largest = self._gap_of(list(dict.fromkeys((shortest, longest))), n_new - 1)
            if not gap <= self._allowed * max(1.0, largest):
                raise UserError(
                    f"{type(self.model).__name__} cannot be steered on texts of {shortest} to {longest} tokens with {n_new} new ones: "
                    f"beside each other they give logits that differ by {gap:.3g} from its own; give shorter texts, or use another model"
                )

    def _gap_of(self, lengths: Sequence[int], n_new: int) -> tuple[float, float]:
        """The largest difference of the logits at n_new tokens after prompts of these lengths from the model's own, and the largest of these."""
        end, device = max(lengths), self.device
        texts = [(torch.arange(1, length + n_new + 1, device=device) * (7 * i + 1)) % self.vocabulary for i, length in enumerate(lengths)]
        cache = PackedCache(len(lengths), end + n_new)
        for i, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            own = PackedCache(1, length)
            for _ in self.boundaries(text[None, :length], own):
                pass
            cache.take_prefix(own, torch.tensor([i], device=device), torch.tensor([0], device=device), length, end)
        cache.start = end
        before = torch.tensor(lengths, device=device)[:, None]
        mask = (torch.arange(end + n_new, device=device)[None] >= end - before).long()
        new = torch.stack([text[-n_new:] for text in texts])
        entry = self.enter(new, before + torch.arange(n_new, device=device), cache, mask)
        hidden, everyone = entry.hidden, slice(0, len(lengths))
        for layer in range(self.n_layers):
            hidden = self.run_block(layer, hidden, entry, cache.select(everyone))
        found = self.logits(hidden)
        expected = torch.stack([self._own_logits(text, n_new) for text in texts])
        return float((found - expected).abs().max()), float(expected.abs().max())

    def _own_logits(self, text: Tensor, n: int) -> Tensor:
        """The model's own logits at the last n tokens of a text, float32 [n, vocabulary]; of the others none are computed."""
        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][:, -n:],))
        try:
            return self.model(input_ids=text[None], use_cache=False).logits[0].float()
        finally:
            handle.remove()

    @property
    def _allowed(self) -> float:
        """How far logits may be from the model's own, as a share of the largest."""
        return 1e-3 if self.dtype == torch.float32 else 0.05

    @torch.inference_mode()
    def _verify(self) -> tuple[int, int]:
        """Checks that blocks run one by one, with a cache in between, give what the model's own forward gives.

        Returns:
            d_model, and the bytes that one row's keys and values of one token take.

        Raises:
            UserError: if they do not, so that an unknown family is refused rather than steered wrongly.
        """
        tokens = torch.arange(1, 7, device=self.device).repeat(2, 1)
        tokens[1] += 7
        expected = self.model(input_ids=tokens, use_cache=False).logits[:, -1].float()
        cache = PackedCache(2, 6)
        for _ in self.boundaries(tokens[:, :5], cache):
            pass
        cache.start = 5
        entry = self.enter(tokens[:, 5:], torch.full((2, 1), 5, device=self.device), cache)
        hidden = entry.hidden
        for layer in range(self.n_layers):
            rows = [self.run_block(layer, hidden[i : i + 1], entry, cache.select(slice(i, i + 1))) for i in range(2)]
            hidden = torch.cat(rows)
        gap = float((self.logits(hidden)[:, -1] - expected).abs().max())
        if not gap <= self._allowed * max(1.0, float(expected.abs().max())):
            raise UserError(
                f"{type(self.model).__name__} cannot be steered: its blocks, run one by one, give logits that differ by "
                f"{gap:.3g} from its own; {another_family()}"
            )
        return hidden.shape[-1], cache.bytes_per_slot()
