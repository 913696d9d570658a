"""Heads: contributions add up, the head that writes the emotion is found, and nothing is left in the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from emo_mlflow.directions.activations import whole
from emo_mlflow.directions.heads import HeadStates, direct_effects, head_states, head_writes
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.families import find_output_projection
from emo_mlflow.prompts.selection import emotions_to_continue, load_prompts
from emo_mlflow.settings.sweep import make_head_config
from emo_mlflow.sweeping.heads import candidates, head_conditions, replacements

ADDITIVE = ("gpt2", "gpt_neo", "gpt_neox", "llama", "qwen3")
TARGET = 2


def texts(n: int = 24) -> tuple[list[tuple[int, ...]], list[str]]:
    """Texts of two kinds that differ in their tokens, of several lengths."""
    rng = np.random.default_rng(0)
    labels = ["joy" if i % 2 else "neutral" for i in range(n)]
    tokens = [(0, *rng.integers(*(10, 40) if x == "joy" else (60, 90), 4 + i % 3).tolist()) for i, x in enumerate(labels)]
    return tokens, labels


def sublayer_outputs(model, tokens: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over own tokens: the embedding's stream, and what each block's attention and MLP add, by hooks of its own."""
    stack = BlockStack(model)
    seen: dict[str, list[np.ndarray]] = {"start": [], "attention": [], "mlp": []}

    def keep(name):
        def hook(module, args, output):
            value = output[0] if isinstance(output, tuple) else output
            seen[name].append(value[0, 1:].mean(dim=0).numpy())

        return hook

    handles = [
        stack.blocks[0].register_forward_pre_hook(lambda module, args: seen["start"].append(args[0][0, 1:].mean(dim=0).numpy()))
    ]
    for block in stack.blocks:
        handles.append(find_output_projection(block).register_forward_hook(keep("attention")))
        handles.append(block.mlp.register_forward_hook(keep("mlp")))
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen["start"][0], np.stack(seen["attention"]), np.stack(seen["mlp"])


@pytest.mark.parametrize("family", ADDITIVE)
def test_heads_add_up_to_the_stream(family):
    """Guards: weights read the wrong way round (Conv1D), heads cut at the wrong width (grouped queries), means over the first token."""
    model = tiny_model(family)
    stack = BlockStack(model)
    tokens, _ = texts(6)
    states = head_states(stack, whole(tokens), TARGET)
    for i, ids in enumerate(tokens):
        start, attention, mlp = sublayer_outputs(model, ids)
        for layer in range(stack.n_layers):
            bias = getattr(find_output_projection(stack.blocks[layer]), "bias", None)
            parts = np.einsum("hd,hdm->m", states.heads[i, layer], head_writes(stack)[layer].numpy())
            np.testing.assert_allclose(parts + (0 if bias is None else bias.numpy()), attention[layer], rtol=1e-3, atol=1e-3)
        total = start + attention[: TARGET + 1].sum(axis=0) + mlp[: TARGET + 1].sum(axis=0)
        np.testing.assert_allclose(states.stream[i], total, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ADDITIVE)
def test_a_head_that_alone_writes_is_found_and_the_rest_have_no_effect(family):
    """Guards: heads or layers that are exchanged in the table."""
    model = tiny_model(family)
    stack = BlockStack(model)
    with torch.no_grad():
        for layer, block in enumerate(stack.blocks):
            weight = find_output_projection(block).weight
            by_input = weight if type(find_output_projection(block)).__name__ == "Conv1D" else weight.T
            kept = by_input[8:16].clone() * 4  # head 1 of width 8
            by_input.zero_()
            if layer == 1:
                by_input[8:16] = kept
    tokens, labels = texts()
    states = head_states(stack, whole(tokens), TARGET)
    table = direct_effects(states, head_writes(stack), labels, "neutral", TARGET).set_index(["layer", "head"])
    assert len(table) == 12 and table.loc[(1, 1), "rank"] == 1 and abs(table.loc[(1, 1), "direct_effect"]) > 0.01
    assert not table.drop((1, 1))["direct_effect"].any()


@pytest.mark.parametrize("family", ADDITIVE)
def test_shares_of_everything_sum_to_one(family):
    """Guards: shares of something other than the emotion's displacement at the target."""
    model = tiny_model(family)
    stack = BlockStack(model)
    tokens, labels = texts(40)
    states = head_states(stack, whole(tokens), TARGET)
    heads = direct_effects(states, head_writes(stack), labels, "neutral", TARGET, seed=3)
    parts = np.zeros((40, stack.n_layers, 3, stack.d_model), np.float32)
    for i, ids in enumerate(tokens):
        start, parts[i, :, 0], parts[i, :, 1] = sublayer_outputs(model, ids)
        parts[i, 0, 2] = start
    as_they_are = [torch.eye(stack.d_model).expand(3, -1, -1)] * stack.n_layers
    everything = direct_effects(HeadStates(parts, states.stream), as_they_are, labels, "neutral", TARGET, seed=3)
    assert everything["direct_effect"].sum() == pytest.approx(1, abs=1e-4)
    attention = everything[everything["head"] == 0].set_index("layer")["direct_effect"]
    np.testing.assert_allclose(heads.groupby("layer")["direct_effect"].sum(), attention, atol=1e-4)
    assert (heads["low"] <= heads["direct_effect"]).all() and (heads["direct_effect"] <= heads["high"]).all()
    assert sorted(heads["rank"]) == list(range(1, 13))


def test_direct_effects_are_held_out():
    """Guards: a direction projected on the very texts it was fitted on, which finds an effect in noise."""
    model = tiny_model("gpt2")
    stack = BlockStack(model)
    rng = np.random.default_rng(1)
    tokens = [(0, *rng.integers(10, 250, 5).tolist()) for _ in range(60)]
    states, found = head_states(stack, whole(tokens), TARGET), []
    for seed in range(20):
        labels = rng.permutation(["joy"] * 30 + ["neutral"] * 30).tolist()
        try:
            found.append(direct_effects(states, head_writes(stack), labels, "neutral", TARGET, seed))
        except UserError:
            found.append(None)
    assert sum(table is None for table in found) >= 4  # the held-out difference of noise is as often below zero as above


# What a public family has between its heads and the stream, or around it, and whether heads still add up.
LIKE_LLAMA = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ADDED = {
    "granite": {"residual_multiplier": 0.22, "embedding_multiplier": 3.0, "attention_multiplier": 0.3},
    "cohere": {},
    "mistral": {},
    "phi": {},
    "phi3": {},
    "stablelm": {"use_parallel_residual": True},
    "olmo": {},
    "smollm3": {},
    "glm": {"head_dim": 8},
    "starcoder2": {},
    "nemotron": {},
    "helium": {"head_dim": 8},
}
NOT_ADDED = {"glm4": {"head_dim": 8}, "gemma2": {"head_dim": 8}, "gemma3_text": {"head_dim": 8}, "olmo2": {}, "exaone4": {"head_dim": 8}}


def published(model_type: str, **given: object):
    """A random model of a type that transformers has, with weights that are no round numbers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**LIKE_LLAMA, **given})).float().eval()
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.1
    return model.requires_grad_(False)


@pytest.mark.parametrize("model_type", ADDED)
def test_heads_add_up_to_what_attention_adds_to_the_stream(model_type):
    """Guards: direct effects of Granite 4.5 times too large, for the model multiplies what its heads write.

    What attention adds is found without any of ours: the block's output with its attention, minus that with the projection's weights at
    zero while the MLP's output is held.
    """
    model = published(model_type, **ADDED[model_type])
    stack = BlockStack(model)
    tokens = (1, *range(10, 18))
    states, writes = head_states(stack, whole([tokens]), 2), head_writes(stack)
    assert writes is not None
    for layer, block in enumerate(stack.blocks):
        projection, mlp = find_output_projection(block), block.mlp
        seen: list[torch.Tensor] = []

        def output_of(held: torch.Tensor | None, block=block, mlp=mlp, seen=seen) -> torch.Tensor:
            found: list[torch.Tensor] = []
            handles = [
                mlp.register_forward_hook(lambda m, a, out: seen.append(out.clone()) if held is None else held.clone()),
                block.register_forward_hook(lambda m, a, out: found.append((out[0] if isinstance(out, tuple) else out).clone())),
            ]
            model(input_ids=torch.tensor([tokens]), use_cache=False)
            for handle in handles:
                handle.remove()
            return found[0]

        every, kept = output_of(None), projection.weight.clone()
        projection.weight.zero_()
        added = (every - output_of(seen[0]))[0, 1:].mean(dim=0).numpy()
        projection.weight.copy_(kept)
        heads = np.einsum("hd,hdm->m", states.heads[0, layer], writes[layer].numpy())
        np.testing.assert_allclose(heads, added, rtol=1e-3, atol=1e-4 * np.abs(added).max())


@pytest.mark.parametrize("model_type", NOT_ADDED)
def test_models_whose_heads_do_not_add_are_told_from_others(model_type):
    """Guards: shares of heads between which and the stream there is a norm, under whatever name."""
    assert head_writes(BlockStack(published(model_type, **NOT_ADDED[model_type]))) is None


def test_a_gain_per_channel_is_no_factor():
    """Guards: a projection whose output is scaled channel by channel, and a stream that a block scales."""
    model = tiny_model("llama")
    projection = find_output_projection(model.model.layers[1])
    handle = projection.register_forward_hook(lambda module, args, output: output * torch.linspace(0.5, 2, output.shape[-1]))
    assert head_writes(BlockStack(model)) is None
    handle.remove()
    assert head_writes(BlockStack(model)) is not None
    model.model.layers[2].register_forward_hook(lambda module, args, output: output * 0.9)
    assert head_writes(BlockStack(model)) is None


def test_no_hook_is_left():
    """Guards: hooks that stay, and see or change every later run."""
    model = tiny_model("gpt_neox")
    stack = BlockStack(model)
    tokens = torch.tensor([[0, 5, 6, 7]])
    before = model(input_ids=tokens).logits
    head_states(stack, whole([(0, 5, 6), (0, 9, 8, 7)]), 3)
    assert torch.equal(model(input_ids=tokens).logits, before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def small_effects() -> pd.DataFrame:
    rows = [("joy", 0, 0, 0.1, 3), ("joy", 1, 0, -0.4, 1), ("joy", 2, 1, 0.2, 2), ("fear", 0, 0, 0.5, 1), ("fear", 2, 1, 0.1, 2)]
    return pd.DataFrame(rows, columns=["emotion", "layer", "head", "direct_effect", "rank"])


def test_candidates_are_the_largest_of_either_sign_in_the_chosen_layers():
    """Guards: heads that write against the emotion left out, or layers that were not asked for."""
    chosen = candidates(small_effects(), [1, 2], "top", 1)
    assert chosen[["emotion", "layer", "head"]].to_numpy().tolist() == [["joy", 1, 0], ["fear", 2, 1]]
    assert len(candidates(small_effects(), [0, 1, 2], "all", 1)) == 5


@pytest.mark.parametrize(("operation", "expected"), [("zero", 0.0), ("mean", 1.0), ("patch", 5.0), ("restore", 1.0)])
def test_what_is_put_in_a_heads_place(operation, expected):
    """Guards: the emotion's mean where the reference's is due, and another emotion's in either."""
    labels = ["joy"] * 3 + ["fear"] * 3 + ["neutral"] * 4
    values = np.array([5.0] * 3 + [9.0] * 3 + [1.0] * 4, np.float32)
    heads = np.broadcast_to(values[:, None, None, None], (10, 3, 2, 4)).copy()
    heads[:, 2, 1] *= 2
    found = replacements(HeadStates(heads, np.zeros((10, 6), np.float32)), labels, "neutral", operation)
    np.testing.assert_allclose(found["joy"][1, 0], [expected] * 4)
    np.testing.assert_allclose(found["joy"][2, 1], [2 * expected] * 4)
    if operation == "patch":
        np.testing.assert_allclose(found["fear"][0, 0], [9.0] * 4)


def test_control_heads_are_other_heads_and_more_of_them_add_to_fewer():
    """Guards: a head that is its own control, and a resumed sweep with more controls that repeats none of the first."""
    grid = [(e, layer, head) for e in ("joy", "fear") for layer in range(3) for head in range(4)]
    effects = pd.DataFrame(grid, columns=["emotion", "layer", "head"]).assign(rank=[*range(1, 13)] * 2)
    config = make_head_config("smoke", {"top": "2", "num_random": "3", "layers": "0,2"}).resolved(("joy", "fear"), n_layers=3)
    conditions = list(head_conditions(config, effects))
    chosen = {(c.emotion, c.layer, c.head) for c in conditions if c.kind == "emotion"}
    controls = [(c.emotion, c.layer, c.head) for c in conditions if c.kind == "random"]
    assert len(chosen) == 4 and len(controls) == 6 and len(set(controls)) == 6 and not chosen & set(controls)
    assert {layer for _, layer, _ in controls} <= {0, 2} and [c.draw for c in conditions if c.kind == "random"] == [0, 1, 2] * 2
    more = [(c.emotion, c.layer, c.head) for c in head_conditions(replace(config, num_random=50), effects) if c.kind == "random"]
    assert more[:3] == controls[:3] and len(more) == 2 * (8 - 2), "no more heads than there are"
    assert len({c.condition_id for c in conditions}) == len(conditions)


def test_prompts_to_restore_are_not_those_that_means_are_of():
    """Guards: an emotion's own texts continued with means that contain them."""
    prompts = load_prompts(emotions=["gratitude", "anger"], max_samples=5)
    found = emotions_to_continue(prompts, 30, seed=0)
    assert not {p.text for p in found.fit} & {p.text for p in found.test}
    assert Counter(p.emotion for p in found.test) == {"gratitude": 30, "anger": 30}
    assert Counter(p.emotion for p in found.fit) == {"gratitude": 113, "anger": 113, "neutral": 225}
    assert [p.text for p in emotions_to_continue(prompts, 5, seed=0).test[:5]] == [p.text for p in found.test[:5]]
