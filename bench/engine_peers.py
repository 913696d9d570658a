"""The libraries that bench/engine.py compares with, each doing one condition's cells as its users do.

Run by bench/engine.py in the peer's environment: reads a JSON request a line, answers a JSON line. Tokens are returned, so that the
benchmark can say how many texts are the ones that our engine writes.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from engine_work import CLOCKS, NEO, QUICK, Work
from safetensors.torch import load_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

Texts = list[list[int]]


class Peers:
    """One model in every library's form. Every peer maps (prompts, layer, vector, window) to the new tokens of each prompt."""

    def __init__(self, package: str, work: Work, clock: Callable[[], float], weights: Path) -> None:
        self.package = package
        self.work = work
        self.folder = weights.parent / "tokenizer"
        self.clock = clock
        self.model = work.model()
        load_model(self.model, weights)
        self.directions = torch.from_numpy(work.directions(work.residual_norms(self.model)))
        self.wrapped: Any = None

    def run(self, name: str, direction: int, layer: int, window: int) -> tuple[float, Texts]:
        """Seconds and texts of one condition; what a library needs to be set up once is not counted."""
        if self.wrapped is None:
            self.wrapped = WRAPPERS[self.package](self) if self.package in WRAPPERS else self.model
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
    with plain_hook(peers.model.transformer.h[layer], vector):
        return hf_generate(peers, *left_padded(prompts))


def left_padded(prompts: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of one batch, int64 [prompts, longest]."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    return ids, torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])


def nnsight_batch(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """nnsight's `generate` of a condition's prompts in one left-padded batch, editing the newest position at every step."""
    ids, mask = left_padded(prompts)
    lm, n = peers.wrapped, peers.work.n_steps
    given = {"max_new_tokens": n, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with lm.generate({"input_ids": ids, "attention_mask": mask}, **given) as tracer:
        for _ in tracer.iter[:n]:
            lm.transformer.h[layer].input[:, -1:] += vector
        found = tracer.result.save()
    return found[:, ids.shape[1] :].tolist()


def nnsight_model(peers: Peers) -> Any:
    """The same model in nnsight's form."""
    from nnsight import TransformersModel

    return TransformersModel(peers.model, tokenizer=word_tokenizer(peers))


def pyvene_batch(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """pyvene's `generate` of a condition's prompts in one left-padded batch, editing the newest position at every step."""
    import pyvene

    def edit(base: torch.Tensor, source: Any) -> torch.Tensor:
        return torch.cat([base[:, :-1], base[:, -1:] + vector], dim=1)

    ids, mask = left_padded(prompts)
    steered = pyvene.IntervenableModel({"layer": layer, "component": "block_input", "intervention": edit}, model=peers.model)
    _, found = steered.generate(
        {"input_ids": ids, "attention_mask": mask}, intervene_on_prompt=True, max_new_tokens=peers.work.n_steps, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return found[:, ids.shape[1] :].tolist()


def steering_vectors(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """steering-vectors' `apply` around `generate`, a text at a time; it edits every position, the prompt's too, after a block."""
    from steering_vectors import SteeringVector

    with SteeringVector({max(0, layer - 1): vector}).apply(peers.model):
        return [hf_generate(peers, torch.tensor([p]), torch.ones(1, len(p)).long())[0] for p in prompts]


def word_tokenizer(peers: Peers) -> PreTrainedTokenizerFast:
    """One word per token, from a folder: libraries that are given tokens want a tokenizer all the same, and read it again by its name."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(peers.work.vocabulary)}, unk_token="w0"))
    place = str(peers.folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w0", pad_token="w0", name_or_path=place)
    tokenizer.save_pretrained(place)
    peers.model.config.save_pretrained(place)
    return tokenizer


def lens_model(peers: Peers) -> Any:
    """The same model in TransformerLens's form, checked to give the same logits."""
    from transformer_lens.model_bridge import TransformerBridge

    lens = TransformerBridge.boot_transformers("gpt-neo", hf_model=peers.model, tokenizer=word_tokenizer(peers), device="cpu")
    tokens = torch.tensor([peers.work.prompts()[0]])
    gap = float((lens(tokens) - peers.model(tokens).logits).abs().max())
    if not gap < 1e-2:
        raise RuntimeError(f"TransformerLens's logits differ by {gap}")
    return lens


def lens_generate(peers: Peers, ids: torch.Tensor, mask: torch.Tensor | None, layer: int, edit: Callable[..., Any], cached: bool) -> Texts:
    """TransformerLens's `generate` under a hook, greedy."""
    applied: AbstractContextManager[Any] = peers.wrapped.hooks(fwd_hooks=[(f"blocks.{layer}.hook_in", edit)])
    with applied:
        found = peers.wrapped.generate(
            ids, attention_mask=mask, max_new_tokens=peers.work.n_steps, stop_at_eos=False, do_sample=False, use_past_kv_cache=cached,
            prepend_bos=False, verbose=False, return_type="tokens",
        )  # fmt: skip
    return found[:, ids.shape[1] :].tolist()


def newest(vector: torch.Tensor) -> Callable[..., Any]:
    """A hook that edits the newest position: with a cache, every generated position once, for good."""

    def edit(stream: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([stream[:, :-1], stream[:, -1:] + vector], dim=1)

    return edit


def lens_cached(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """With its cache, a text at a time."""
    return [lens_generate(peers, torch.tensor([p]), None, layer, newest(vector), cached=True)[0] for p in prompts]


def lens_batch(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """With its cache, a condition's prompts in one left-padded batch."""
    return lens_generate(peers, *left_padded(prompts), layer, newest(vector), cached=True)


def lens_window(peers: Peers, prompts: list[tuple[int, ...]], layer: int, vector: torch.Tensor, window: int) -> Texts:
    """Without its cache, the only way in which its hooks give a window: the text is run again for every token."""
    texts: Texts = []
    for prompt in prompts:

        def edit(stream: torch.Tensor, hook: Any, length: int = len(prompt)) -> torch.Tensor:
            first = min(stream.shape[1] - 1, max(length, stream.shape[1] - window))
            return torch.cat([stream[:, :first], stream[:, first:] + vector], dim=1)

        texts += lens_generate(peers, torch.tensor([prompt]), None, layer, edit, cached=False)
    return texts


PEERS: dict[str, Callable[..., Texts]] = {
    "transformer_lens": lens_cached,
    "transformer_lens, batch of 8": lens_batch,
    "transformer_lens uncached": lens_window,
    "nnsight, batch of 8": nnsight_batch,
    "pyvene, batch of 8": pyvene_batch,
    "steering-vectors": steering_vectors,
    "transformers hooks": hf_one,
    "transformers hooks, batch of 8": hf_batch,
}
WRAPPERS: dict[str, Callable[[Peers], Any]] = {"transformer_lens": lens_model, "nnsight": nnsight_model}


@torch.inference_mode()
def main() -> None:
    """Answers requests until standard input ends. The first line sent says which versions are here."""
    answers, sys.stdout = sys.stdout, sys.stderr
    package, work, clock, weights = sys.argv[1:]
    peers = Peers(package, {"neo": NEO, "quick": QUICK}[work], CLOCKS[clock], Path(weights))

    def answer(payload: object) -> None:
        print(json.dumps(payload), file=answers, flush=True)

    answer({name: importlib.metadata.version(name) for name in (package, "transformers", "torch")})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            seconds, texts = peers.run(**request)
            answer({"seconds": seconds, "texts": texts})
        except Exception as error:  # whatever another library raises is the result of measuring it
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
