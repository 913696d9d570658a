"""Random models of every supported family, four layers deep, and a hand-built byte-level tokenizer: no network."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox", "llama", "qwen3", "gemma3")
CONTEXT = 128
LOCAL_WINDOW = 8
# Multiplies the random initialisation, whose streams are otherwise so small that no intervention changes a token.
WEIGHT_SCALE = 6.0

# As the published tokenizers have them: BOS, EOS, and what is put in front of every text unasked.
_SPECIAL_TOKENS: dict[str, dict[str, str | None]] = {
    "gpt2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "gpt_neo": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "gpt_neox": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "llama": {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "added": "<|begin_of_text|>"},
    "qwen3": {"bos": None, "eos": "<|im_end|>"},
    "gemma3": {"bos": "<bos>", "eos": "<eos>", "added": "<bos>"},
    "smollm2": {"bos": "<|im_start|>", "eos": "<|im_end|>"},
}
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_EVERY_SPECIAL = (*_CHATML, "<|begin_of_text|>", "<|end_of_text|>", "<bos>", "<eos>")
_MERGES = ("t h", "th e", "Ġ the", "a n", "an d", "Ġ and", "i n", "in g", "e r", "o u", "y ou", "Ġ you")


def tiny_tokenizer(family: str = "gpt2") -> PreTrainedTokenizerFast:
    """A byte-level BPE of the 256 bytes, a few merges and the family's special tokens; any text survives a round trip.

    Ids are the same for all families: specials first, so that `<|endoftext|>` is 0, as in SmolLM2.
    """
    names = _SPECIAL_TOKENS[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left, right in (merge.split() for merge in _MERGES)]
    merged = [left + right for left, right in merges]
    vocabulary = {token: i for i, token in enumerate((*_EVERY_SPECIAL, *alphabet, *merged))}
    backend = Tokenizer(BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    known = {names["bos"], names["eos"], *(_CHATML if family in ("qwen3", "smollm2") else ())}
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _EVERY_SPECIAL if t in known])
    if added := names.get("added"):
        ids = [(added, vocabulary[added])]
        backend.post_processor = processors.TemplateProcessing(f"{added} $A", special_tokens=ids)
    specials = {f"{role}_token": names[role] for role in ("bos", "eos") if names[role]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=CONTEXT, **specials)


VOCABULARY_SIZE = len(_EVERY_SPECIAL) + 256 + len(_MERGES)


def _config_and_class(family: str, n_layers: int, d_model: int) -> tuple[object, type[PreTrainedModel]]:
    heads, size = 4, VOCABULARY_SIZE
    llama_like = {
        "vocab_size": size,
        "max_position_embeddings": CONTEXT,
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
    }
    local_and_full = ["sliding_attention", "full_attention"] * n_layers
    if family == "gpt2":
        config = GPT2Config(vocab_size=size, n_positions=CONTEXT, n_embd=d_model, n_layer=n_layers, n_head=heads)
        return config, GPT2LMHeadModel
    if family == "gpt_neo":
        kinds = (["global", "local"] * n_layers)[:n_layers]
        return GPTNeoConfig(
            vocab_size=size,
            max_position_embeddings=CONTEXT,
            hidden_size=d_model,
            num_layers=n_layers,
            num_heads=heads,
            attention_types=[[[kind], 1] for kind in kinds],
            window_size=LOCAL_WINDOW,
        ), GPTNeoForCausalLM
    if family == "gpt_neox":
        without_groups = {name: value for name, value in llama_like.items() if name != "num_key_value_heads"}
        return GPTNeoXConfig(**without_groups), GPTNeoXForCausalLM
    if family == "llama":
        return LlamaConfig(**llama_like), LlamaForCausalLM
    if family == "qwen3":
        return Qwen3Config(**llama_like, head_dim=d_model // heads), Qwen3ForCausalLM
    if family == "gemma3":
        return Gemma3TextConfig(
            **llama_like,
            head_dim=d_model // heads,
            query_pre_attn_scalar=d_model // heads,
            sliding_window=LOCAL_WINDOW,
            layer_types=local_and_full[:n_layers],
        ), Gemma3ForCausalLM
    raise ValueError(f"no tiny model of family {family!r}: there are {', '.join(FAMILIES)}")


def tiny_model(family: str, seed: int = 0, n_layers: int = 4, d_model: int = 32) -> PreTrainedModel:
    """A random model, float32, on the CPU, whose greedy text depends on what is injected into it.

    Dropout and gradients are off; every second layer of GPT-Neo and Gemma sees `LOCAL_WINDOW` positions.
    """
    config, model_class = _config_and_class(family, n_layers, d_model)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = model_class(config).float().eval().requires_grad_(False)
    finally:
        torch.random.set_rng_state(state)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(WEIGHT_SCALE)
    return model


def save_tiny(folder: Path, family: str, seed: int = 0, n_layers: int = 4, d_model: int = 32) -> Path:
    """Writes a tiny model and its tokenizer to a model folder, which it returns."""
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, seed, n_layers, d_model)
    for owner in (model.config, model.generation_config):
        owner.bos_token_id, owner.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
