"""Heads: contributions add up, the head that writes the emotion is found, and nothing is left in the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from tiny_models import save_tiny, tiny_model

from emo_mlflow.errors import UserError
from emo_mlflow.head_run import HeadSettings, candidates, interventions, restore_split, run_heads
from emo_mlflow.heads import HeadStates, direct_effects, head_states, head_writes
from emo_mlflow.layers import BlockStack, find_output_projection
from emo_mlflow.types import Prompt

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
    states = head_states(stack, tokens, TARGET)
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
    states = head_states(stack, tokens, TARGET)
    table = direct_effects(states, head_writes(stack), labels, "neutral", TARGET).set_index(["layer", "head"])
    assert len(table) == 12 and table.loc[(1, 1), "rank"] == 1 and abs(table.loc[(1, 1), "direct_effect"]) > 0.01
    assert not table.drop((1, 1))["direct_effect"].any()


@pytest.mark.parametrize("family", ADDITIVE)
def test_shares_of_everything_sum_to_one(family):
    """Guards: shares of something other than the emotion's displacement at the target."""
    model = tiny_model(family)
    stack = BlockStack(model)
    tokens, labels = texts(40)
    states = head_states(stack, tokens, TARGET)
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
    states, found = head_states(stack, tokens, TARGET), []
    for seed in range(20):
        labels = rng.permutation(["joy"] * 30 + ["neutral"] * 30).tolist()
        try:
            found.append(direct_effects(states, head_writes(stack), labels, "neutral", TARGET, seed))
        except UserError:
            found.append(None)
    assert sum(table is None for table in found) >= 4  # the held-out difference of noise is as often below zero as above


def test_models_whose_heads_do_not_add_are_refused():
    """Guards: shares of Gemma's heads, between which and the stream there is a norm."""
    with pytest.raises(UserError, match="normalises what attention writes.*screen=all"):
        head_writes(BlockStack(tiny_model("gemma3")))


def test_no_hook_is_left():
    """Guards: hooks that stay, and see or change every later run."""
    model = tiny_model("gpt_neox")
    stack = BlockStack(model)
    tokens = torch.tensor([[0, 5, 6, 7]])
    before = model(input_ids=tokens).logits
    head_states(stack, [(0, 5, 6), (0, 9, 8, 7)], 3)
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
    states = HeadStates(heads, np.zeros((10, 6), np.float32))
    found = interventions(small_effects(), states, labels, "neutral", operation)
    by_name = {(item.emotion, item.layer, item.head): item for item in found}
    np.testing.assert_allclose(by_name["joy", 1, 0].replacement, [expected] * 4)
    np.testing.assert_allclose(by_name["joy", 2, 1].replacement, [2 * expected] * 4)
    if operation == "patch":
        np.testing.assert_allclose(by_name["fear", 0, 0].replacement, [9.0] * 4)
    assert len({item.intervention_id for item in found}) == len(found)


def test_prompts_to_restore_are_not_those_that_means_are_of():
    """Guards: an emotion's own texts continued with means that contain them."""
    prompts = [Prompt(f"{i}", "joy" if i % 2 else "neutral", "fit") for i in range(20)]
    measured, continued = restore_split(prompts, "joy", 0)
    assert not {p.text for p in measured} & {p.text for p in continued}
    assert len(continued) == 5 and {p.emotion for p in continued} == {"joy"} and len(measured) == 10


def write_texts(path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = ["text,emotion,role"]
    for i in range(30):
        words = "you and the" if i % 2 else "stone brick road"
        rows.append(f"{i} {' '.join(rng.choice(words.split(), 5))},{'joy' if i % 2 else 'neutral'},{'test' if i > 27 else 'fit'}")
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_a_run_writes_what_generation_needs(tmp_path: Path):
    """Guards: candidates without their replacement, or of other layers than asked for."""
    model = save_tiny(tmp_path / "model", "llama")
    settings = HeadSettings(str(model), str(write_texts(tmp_path / "t.csv")), layers="1-2", operation="mean", top=3, device="cpu")
    outcome = run_heads(settings, tmp_path / "out")
    chosen = pd.read_csv(tmp_path / "out" / "candidates.csv")
    assert len(chosen) == 3 and set(chosen["layer"]) <= {1, 2} and len(pd.read_csv(tmp_path / "out" / "heads.csv")) == 16
    replacements = load_file(tmp_path / "out" / "replacements.safetensors")
    assert set(replacements) == set(chosen["intervention_id"]) and {v.shape for v in replacements.values()} == {(8,)}
    assert (tmp_path / "out" / "figures" / "layer_head_map.png").stat().st_size > 5000
    assert len([name for name, _, _ in outcome.metrics if name == "direct_effect.sum.joy"]) == 4


def test_all_heads_of_a_model_that_cannot_be_ranked(tmp_path: Path):
    """Guards: Gemma's heads, which can be ablated though they have no direct effects."""
    model, texts = save_tiny(tmp_path / "model", "gemma3"), write_texts(tmp_path / "t.csv")
    with pytest.raises(UserError, match="screen=all"):
        run_heads(HeadSettings(str(model), str(texts), device="cpu"), tmp_path / "out")
    run_heads(HeadSettings(str(model), str(texts), screen="all", layers="3", device="cpu"), tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "candidates.csv")) == 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"operation": "drop"}, "operation='drop' is not one of zero, mean, patch, restore"),
        ({"screen": "some"}, "screen='some' is not one of top, all"),
        ({"top": 0}, "at least 1"),
        ({"layers": "7"}, "layer 7 does not exist"),
        ({"layers": "0-3", "target_layer": 1}, "target_layer=1 is not from 3"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, change, match):
    """Guards: a choice that is silently taken for another."""
    model, texts = save_tiny(tmp_path / "model", "gpt2"), write_texts(tmp_path / "t.csv")
    with pytest.raises(UserError, match=match):
        run_heads(HeadSettings(**({"model": str(model), "dataset": str(texts), "device": "cpu"} | change)), tmp_path / "out")
