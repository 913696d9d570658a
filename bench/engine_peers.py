"""The libraries that bench/engine.py compares with, each doing one condition's cells as its users do.

Run by bench/engine.py in the peers' environment: reads a JSON request a line, answers a JSON line. Tokens are returned, so that the
benchmark can say how many texts are the ones that our engine writes.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from engine_work import CLOCKS, NEO, QUICK, Work
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

Texts = list[list[int]]


class Peers:
    """One model in every library's form. Every peer maps (prompts, layer, vector, window) to the new tokens of each prompt."""

    def __init__(self, work: Work, clock: Callable[[], float]) -> None:
        self.work = work
        self.clock = clock
        self.model = work.model()
        self.directions = torch.from_numpy(work.directions(work.residual_norms(self.model)))
        self.lens: Any = None

    def run(self, name: str, direction: int, layer: int, window: int) -> tuple[float, Texts]:
        """Seconds and texts of one condition; what a library needs to be set up once is not counted."""
        if name.startswith("transformer_lens") and self.lens is None:
            self.lens = transformer_lens_model(self.model, self.work)
        peer: Callable[..., Texts] = PEERS[name]
        start = self.clock()
        texts = peer(self, self.work.prompts(), layer, self.directions[direction, layer], window)
        return self.clock() - start, texts


@contextmanager
def plain_hook(block: torch.nn.Module, vector: torch.Tensor) -> Any:
    """Adds the vector to the newest position of what enters a block: with a cache, to every position that generates."""

    def before(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.cat([args[0][:, :-1], args[0][:, -1:] + vector], dim=1), *args[1:])

    handle = block.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def hf_generate(peers: Peers, ids: torch.Tensor, mask: torch.Tensor) -> Texts:
    """The new tokens of Hugging Face `generate`, greedy."""
    found = peers.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=peers.work.n_steps, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return found[:, ids.shape[1] :].tolist()


def hf_one(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """`generate` with a plain hook, a text at a time."""
    with plain_hook(peers.model.transformer.h[layer], vector):
        return [hf_generate(peers, torch.tensor([p]), torch.ones(1, len(p)).long())[0] for p in prompts]


def hf_batch(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """`generate` with a plain hook, a condition's prompts in one left-padded batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with plain_hook(peers.model.transformer.h[layer], vector):
        return hf_generate(peers, ids, mask)


def steering_vectors(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """steering-vectors' `apply` around `generate`, a text at a time; it edits every position, the prompt's too, after a block."""
    from steering_vectors import SteeringVector

    with SteeringVector({max(0, layer - 1): vector}).apply(peers.model):
        return [hf_generate(peers, torch.tensor([p]), torch.ones(1, len(p)).long())[0] for p in prompts]


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word per token: TransformerLens's cache needs a tokenizer to know what is padding."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w0", pad_token="w0")


def transformer_lens_model(model: Any, work: Work) -> Any:
    """The same weights as a HookedTransformer, unprocessed, checked to give the same logits."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_neo_weights

    config = HookedTransformerConfig(
        n_layers=work.n_layers, d_model=work.d_model, n_ctx=model.config.max_position_embeddings, d_head=work.d_model // 12, n_heads=12,
        d_mlp=4 * work.d_model, d_vocab=work.vocabulary, act_fn="gelu_new", normalization_type="LN", use_attn_scale=False,
        use_local_attn=True, attn_types=list(model.config.attention_layers), window_size=model.config.window_size, device="cpu",
        default_prepend_bos=False,
    )  # fmt: skip
    lens = HookedTransformer(config)
    lens.tokenizer = _tokenizer(work.vocabulary)
    lens.load_state_dict({**lens.state_dict(), **convert_neo_weights(model, config)})
    lens.eval().requires_grad_(False)
    tokens = torch.tensor([work.prompts()[0]])
    gap = float((lens(tokens) - model(tokens).logits).abs().max())
    if not gap < 1e-2:
        raise RuntimeError(f"TransformerLens's logits differ by {gap}")
    return lens


def lens_generate(
    peers: Peers, prompts: list[tuple[int, ...]], hook: tuple[str, Callable[..., Any]], cached: bool
) -> Texts:
    """TransformerLens's `generate` under a hook, greedy, for prompts of one length at a time."""
    applied: AbstractContextManager[Any] = peers.lens.hooks(fwd_hooks=[hook])
    with applied:
        return [
            peers.lens.generate(
                torch.tensor([p]), max_new_tokens=peers.work.n_steps, stop_at_eos=False, do_sample=False,
                use_past_kv_cache=cached, prepend_bos=False, verbose=False, return_type="tokens",
            )[0, len(p) :].tolist()
            for p in prompts
        ]  # fmt: skip


def lens_cached(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """With its cache, a text at a time: every generated position is edited once, for good."""

    def edit(stream: torch.Tensor, hook: Any) -> torch.Tensor:
        stream[:, -1:] += vector
        return stream

    return lens_generate(peers, prompts, (f"blocks.{layer}.hook_resid_pre", edit), cached=True)


def lens_window(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """Without its cache, the only way in which its hooks give a window: the text is run again for every token."""
    texts: Texts = []
    for prompt in prompts:

        def edit(stream: torch.Tensor, hook: Any, length: int = len(prompt)) -> torch.Tensor:
            first = min(stream.shape[1] - 1, max(length, stream.shape[1] - window))
            stream[:, first:] += vector
            return stream

        texts += lens_generate(peers, [prompt], (f"blocks.{layer}.hook_resid_pre", edit), cached=False)
    return texts


PEERS: dict[str, Callable[..., Texts]] = {
    "transformer_lens": lens_cached,
    "transformer_lens uncached": lens_window,
    "steering-vectors": steering_vectors,
    "transformers hooks": hf_one,
    "transformers hooks, batch of 8": hf_batch,
}


@torch.inference_mode()
def main() -> None:
    """Answers requests until standard input ends. The first line sent says which versions are here."""
    answers, sys.stdout = sys.stdout, sys.stderr
    peers = Peers({"neo": NEO, "quick": QUICK}[sys.argv[1]], CLOCKS[sys.argv[2]])

    def answer(payload: object) -> None:
        print(json.dumps(payload), file=answers, flush=True)

    names = ("transformer_lens", "steering-vectors", "transformers", "torch")
    answer({name: importlib.metadata.version(name) for name in names})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            seconds, texts = peers.run(**request)
            answer({"seconds": seconds, "texts": texts})
        except Exception as error:  # whatever another library raises is the result of measuring it
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
