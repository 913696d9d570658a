"""The work that bench/engine.py measures: a model's shape, prompts, and conditions, the same for every engine.

Imported by the benchmark and by the process that runs the other libraries, so it needs torch and transformers only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, PreTrainedModel

# Multiplies the random initialisation, so that texts differ between prompts and conditions, as a trained model's do.
WEIGHT_SCALE = 3.0
ALPHA_IN_NORMS = 0.5  # the directions' length, in norms of the residual stream at their layer
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Work:
    """Cells: every prompt under every condition; a condition is one direction at one layer, injected before that block."""

    family: str
    n_layers: int
    d_model: int
    vocabulary: int
    n_prompts: int
    n_directions: int
    n_steps: int
    seed: int = 0

    @property
    def n_conditions(self) -> int:
        """Directions x layers."""
        return self.n_directions * self.n_layers

    @property
    def n_cells(self) -> int:
        """Conditions x prompts."""
        return self.n_conditions * self.n_prompts

    def prompts(self) -> list[tuple[int, ...]]:
        """Random tokens, 8 to 15 of them: as long as the package's own prompts are."""
        rng = np.random.default_rng(self.seed)
        return [tuple(int(t) for t in rng.integers(1, self.vocabulary, 8 + i % 8)) for i in range(self.n_prompts)]

    def directions(self, norms: np.ndarray) -> np.ndarray:
        """float32 [directions, layers, d_model]; norms [layers] are the residual stream's."""
        rng = np.random.default_rng(self.seed + 1)
        random = rng.normal(size=(self.n_directions, self.n_layers, self.d_model))
        unit = random / np.linalg.norm(random, axis=-1, keepdims=True)
        return (ALPHA_IN_NORMS * norms[None, :, None] * unit).astype(np.float32)

    def model(self) -> PreTrainedModel:
        """The model with random weights, float32 on the CPU; equal in every process."""
        shape = {"vocab_size": self.vocabulary, "bos_token_id": 0, "eos_token_id": 0}
        torch.manual_seed(self.seed)
        model: PreTrainedModel
        if self.family == "gpt_neo":
            kinds = [[["global", "local"], self.n_layers // 2]]
            model = GPTNeoForCausalLM(
                GPTNeoConfig(**shape, hidden_size=self.d_model, num_layers=self.n_layers, num_heads=12, attention_types=kinds)
            )
        else:
            model = GPT2LMHeadModel(GPT2Config(**shape, n_embd=self.d_model, n_layer=self.n_layers, n_head=12))
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "wpe" not in name:
                parameter.data.mul_(WEIGHT_SCALE)
        return model.float().eval().requires_grad_(False)

    def residual_norms(self, model: PreTrainedModel) -> np.ndarray:
        """Mean norm of the residual stream before each block, [layers]."""
        tokens = torch.tensor([self.prompts()[-1]])
        states = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states[:-1]
        return np.array([float(state[0].norm(dim=-1).mean()) for state in states])


NEO = Work("gpt_neo", n_layers=12, d_model=768, vocabulary=50257, n_prompts=8, n_directions=3, n_steps=30)
QUICK = Work("gpt_neo", n_layers=2, d_model=48, vocabulary=500, n_prompts=3, n_directions=2, n_steps=6)
# 225 prompts x 3 emotions x 12 layers x (a direction and 50 random controls) = 413,100 cells
STUDY = Work("gpt2", n_layers=12, d_model=768, vocabulary=50257, n_prompts=225, n_directions=153, n_steps=30)
