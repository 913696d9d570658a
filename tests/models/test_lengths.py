"""Texts of different lengths beside each other: each gives what the model alone gives of it, at the lengths in use, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packs import EOS, assert_same_or_tied
from places import write_texts
from plain_passes import patch_of
from tiny_models import FAMILIES, save_tiny, tiny_model
from tiny_scorers import write_scorer
from torch.nn.functional import cross_entropy
from transformers import Phi3Config, Phi3ForCausalLM

from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.steering.choices import ChoiceMeter, Item
from emo_mlflow.steering.damage import DamageMeter
from emo_mlflow.steering.decoding import PackDecoder
from emo_mlflow.steering.edits import Patch
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.packing import Row
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.sweeping.plan import make_plan, prepare
from emo_mlflow.types import Cell

SWITCH = 14


def phi_3(seed: int = 0) -> Phi3ForCausalLM:
    """A Phi-3-128k in small: texts of more than 14 tokens have other rotary frequencies, for all their tokens."""
    torch.manual_seed(seed)
    config = Phi3Config(
        vocab_size=283, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, original_max_position_embeddings=SWITCH, pad_token_id=0, eos_token_id=2,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 9.0, 20.0, 30.0]},
    )  # fmt: skip
    model = Phi3ForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(6)
    return model


def rows_of(lengths: list[int], scope: str) -> list[Row]:
    rng, rows = np.random.default_rng(0), []
    for i, length in enumerate(lengths):
        prompt = tuple(int(token) for token in rng.integers(8, 97, length))
        patch = Patch(1 + i % 3, scope, 3 if scope == "window" else None, rng.normal(size=32).astype(np.float32), None, np.ones(6, np.float32))
        rows += [Row(Cell(f"base{i}", "p", 0), prompt, None), Row(Cell(f"c{i}", "p", 0), prompt, patch)]
    return rows


@pytest.mark.parametrize("scope", ["window", "generated", "all"])
def test_short_texts_do_not_change_beside_long_ones(scope):
    """Guards: Phi-3-128k's rotary table, which is chosen by the longest text of a batch: 17 of 20 texts, baselines too, were others."""
    stack, decoding = BlockStack(phi_3()), Decoding(6, 6, 0.0, EOS)
    assert stack.switch == SWITCH
    rows = rows_of([3, 20, 9, 15, 5, 30], scope)
    engine = Engine(stack, decoding, lambda batch: [""] * len(batch))
    for pack in engine.packs(rows):
        for decoded in PackDecoder(stack, pack, decoding).run():
            assert_same_or_tied(stack, decoded.row, decoded.tokens, decoding)
            text = torch.tensor([[*decoded.row.tokens, *decoded.tokens]])
            logits = stack.model(text, use_cache=False).logits[0, len(decoded.row.tokens) - 1 : -1]
            if text.shape[1] != SWITCH + 1:  # of which the last token is written and not read
                assert decoded.nll == pytest.approx(float(cross_entropy(logits, text[0, len(decoded.row.tokens) :])), abs=1e-3)


def test_a_text_that_crosses_the_switch_is_refused(tmp_path):
    """Guards: keys of the first tokens in one encoding and those of later ones in another."""
    stack = BlockStack(phi_3())
    assert [stack.is_long(length, 6) for length in (3, 9, 15, 40)] == [False, False, True, True]
    for length in (10, 14):
        with pytest.raises(UserError, match=f"a text of {length} tokens with 6 new ones crosses 14 tokens.*Phi3"):
            stack.is_long(length, 6)
    assert not stack.is_long(14, 1)
    save_tiny(tmp_path / "model", "llama")
    stack.model.save_pretrained(tmp_path / "model")
    write_scorer(tmp_path / "scorer")
    write_texts(tmp_path, ("joy", "neutral"))
    given = {"model": tmp_path / "model", "dataset": tmp_path / "data.jsonl", "scorers": tmp_path / "scorer", "layers": 1, "device": "cpu"}
    inputs = prepare(make_config("smoke", {**{name: str(value) for name, value in given.items()}, "sequence_length": "60"}))
    make_plan(inputs)  # its prompts are of 20 tokens or so, long from the start
    with pytest.raises(UserError, match="crosses 14 tokens"):
        ChoiceMeter(stack, [Item(tuple(range(8, 20)), ((1, 2), (3, 4, 5, 6)))], [0])


def test_damage_is_that_of_each_text_alone():
    """Guards: a passage that is padded beside a longer one, and read in that one's encoding."""
    stack, rng = BlockStack(phi_3()), np.random.default_rng(1)
    texts = [tuple(int(token) for token in rng.integers(8, 97, n)) for n in (6, 20, 10, 30, 13)]
    patches = [patch_of(rng.normal(size=32), boundary) for boundary in (1, 3)]
    together = DamageMeter(stack, texts, [1, 3]).measure(patches)
    alone = [DamageMeter(BlockStack(phi_3()), [text], [1, 3]).measure(patches) for text in texts]
    np.testing.assert_allclose(together.kl, np.concatenate([part.kl for part in alone], axis=1), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exact_at_the_lengths_in_use(family):
    """Guards: a check that refuses what is right."""
    stack = BlockStack(tiny_model(family))
    stack.check_lengths([2, 7, 60], 40)
    stack.check_lengths([5], 1)


def test_what_changes_with_length_is_found_where_it_is_used():
    """Guards: a check at six tokens alone: a model that nobody knows of, whose encoding depends on the longest text of a batch."""
    stack = BlockStack(phi_3())
    stack.switch = None
    stack.check_lengths([2, 4], 6)
    for lengths, n_new in (([3, 20], 6), ([10], 12)):
        with pytest.raises(UserError, match=rf"Phi3ForCausalLM cannot be steered on texts of {min(lengths)} to {max(lengths)} tokens"):
            stack.check_lengths(lengths, n_new)


def test_positions_that_are_counted_in_slots_are_found():
    """Guards: a model that scales its attention by the slot of a token, which a longer neighbour moves (as Llama 4's, by cache_position)."""
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn

    def scaled(module, args, kwargs):
        gain = 1 + kwargs["cache_position"].float() / 10
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * gain[None, :, None]}

    attention.register_forward_pre_hook(scaled, with_kwargs=True)
    stack = BlockStack(model)
    stack.check_lengths([7], 5)
    with pytest.raises(UserError, match="beside each other they give logits that differ"):
        stack.check_lengths([2, 7], 5)
