"""A tiny Llama as a GGUF file, as llama.cpp's converter writes it: 8-bit matrices, permuted queries and keys, a vocabulary of pieces or of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny_models import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
WORDS = ("there", "thank", "you", "the", "them")


@dataclass(frozen=True)
class Vocabulary:
    """The fields tokenizer.ggml.* of a file."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] | None = None
    merges: Sequence[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def of_pieces(reachable: bool = True) -> Vocabulary:
    """SentencePiece's kind: words with all that leads to them, or, not `reachable`, words that no merge gives."""
    letters = sorted({chr(i) for i in range(32, 127)} - {" "})
    steps = [f"▁{word[:n]}" for word in WORDS for n in range(1, len(word) + 1)] if reachable else [f"▁{word}" for word in WORDS]
    pieces = [*dict.fromkeys(["▁", *letters, *steps])]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    return Vocabulary("llama", tokens, types, scores, special={"bos": 1, "eos": 2, "unknown": 0})


def of_bytes(pre: str = "gpt-2") -> Vocabulary:
    """GPT-2's kind, of the tiny models' tokenizer."""
    content = json.loads(tiny_tokenizer("gpt2").backend_tokenizer.to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    types = [CONTROL if token == "<|endoftext|>" else NORMAL for token in tokens]
    return Vocabulary("gpt2", tokens, types, merges=merges, special={"bos": 0, "eos": 0}, more={"pre": pre})


def tiny_llama(vocabulary_size: int, rope_scaling: dict[str, Any] | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=rope_scaling,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def _permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    return weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _unpermuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    return weight.reshape(n_heads, weight.shape[0] // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path: Path, vocabulary: Vocabulary, extra: dict[str, np.ndarray] | None = None) -> dict[str, torch.Tensor]:
    """Writes the file; returns the weights that are in it, by the names of transformers, as they are after quantising."""
    model = tiny_llama(len(vocabulary.tokens))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    for add, value in (
        (writer.add_context_length, 128), (writer.add_embedding_length, 64), (writer.add_block_count, 2), (writer.add_feed_forward_length, 96),
        (writer.add_head_count, 4), (writer.add_head_count_kv, 2), (writer.add_rope_freq_base, 10000.0), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, len(vocabulary.tokens)), (writer.add_tokenizer_model, vocabulary.model), (writer.add_token_list, vocabulary.tokens),
        (writer.add_token_types, vocabulary.types), (writer.add_token_scores, vocabulary.scores), (writer.add_token_merges, vocabulary.merges),
        (writer.add_tokenizer_pre, vocabulary.more.get("pre")),
    ):  # fmt: skip
        if value is not None:
            add(value)
    for role, i in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", i)
    kept = {}
    for name, tensor in model.state_dict().items():
        short = name
        for ours, theirs in NAMES.items():
            short = short.replace(ours, theirs)
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        weight = _permuted(tensor.numpy(), heads) if heads else tensor.numpy()
        if weight.ndim > 1:
            eight = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(weight, eight)
            writer.add_tensor(short, packed, raw_dtype=eight)
            weight = gguf.quants.dequantize(packed, eight)
        else:
            writer.add_tensor(short, weight)
        kept[name] = torch.from_numpy((_unpermuted(weight, heads) if heads else weight).copy())
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept
