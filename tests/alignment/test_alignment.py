"""Alignment: a planted rotation is found, overlap can change, nulls hold their level, mapped directions act."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from asked import asked
from scipy import linalg, stats
from tiny_models import save_tiny, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from emo_mlflow.alignment.maps import (
    as_they_are,
    halves,
    held_out_fit,
    orthonormal,
    procrustes,
    ridge,
    subspace_overlaps,
)
from emo_mlflow.alignment.tables import Aligner, States, layer_grid, matching_layer
from emo_mlflow.commands.align import run_align, word_positions
from emo_mlflow.directions.files import load_directions
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import load
from emo_mlflow.models.names import resolve
from emo_mlflow.settings.align import AlignSettings
from emo_mlflow.steering.decoding import PackDecoder
from emo_mlflow.steering.edits import make_patch
from emo_mlflow.steering.packing import Row
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.types import Cell, Condition

N_TEXTS, N_WORDS = 40, 300


def rotation(d: int, seed: int = 0) -> np.ndarray:
    return linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def rotate_llama(model: LlamaForCausalLM, q: np.ndarray) -> None:
    """Turns the basis of the residual stream, exactly: h becomes h q everywhere, and no logit changes.

    RMSNorm commutes with a rotation once its gains are part of the weights that read the normalised stream.
    """
    turn = torch.from_numpy(q)

    def reads(linear: torch.nn.Linear, gain: torch.Tensor) -> None:
        linear.weight.data = (linear.weight.data.double() * gain.double() @ turn).float()

    def writes(linear: torch.nn.Linear) -> None:
        linear.weight.data = (turn.T @ linear.weight.data.double()).float()

    body = model.model
    body.embed_tokens.weight.data = (body.embed_tokens.weight.data.double() @ turn).float()
    reads(model.lm_head, body.norm.weight.data)
    body.norm.weight.data.fill_(1)
    for block in body.layers:
        for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            reads(linear, block.input_layernorm.weight.data)
        for linear in (block.mlp.gate_proj, block.mlp.up_proj):
            reads(linear, block.post_attention_layernorm.weight.data)
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data.fill_(1)
        writes(block.self_attn.o_proj)
        writes(block.mlp.down_proj)


@pytest.mark.parametrize(("d_a", "d_b"), [(12, 12), (8, 20)])
def test_procrustes_finds_a_planted_rotation_and_scale(d_a, d_b):
    """Guards: transposed maps, forgotten means, and widths that must agree."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, d_a)) * np.linspace(0.5, 4, d_a) + 3
    truth = 2.5 * rotation(d_b)[:d_a]
    y = x @ truth - 7
    found = procrustes(x, y)
    np.testing.assert_allclose(found.matrix, truth, atol=1e-9)
    fresh = rng.normal(size=(50, d_a)) + 3
    assert held_out_fit(found, fresh, fresh @ truth - 7)["r2"] > 0.999999


def test_procrustes_into_fewer_dimensions_keeps_what_matters():
    """Guards: a map from the wider model that is no partial isometry."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=(300, 6)) * 3
    x = y @ rotation(15)[:6]
    found = procrustes(x, y)
    assert found.matrix.shape == (15, 6) and found.detail == 6
    assert held_out_fit(found, x, y)["r2"] > 0.999999


def test_what_the_texts_do_not_determine_is_not_mapped():
    """Guards: with fewer texts than dimensions, directions carried to wherever the decomposition left them."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(5, 30)), rng.normal(size=(5, 30))
    found = procrustes(x, y)
    unseen = linalg.null_space(x - x.mean(axis=0)).T
    assert found.detail == 4 and np.abs(unseen @ found.matrix).max() < 1e-9


def test_ridge_finds_a_linear_map_and_shrinks_noise():
    """Guards: a penalty on the wrong scale; unrelated spaces must not be predicted."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(10, 14))
    x, fresh = rng.normal(size=(400, 10)) * 50, rng.normal(size=(100, 10)) * 50
    noise = rng.normal(size=(400, 14))
    assert held_out_fit(ridge(x, x @ truth + noise), fresh, fresh @ truth)["r2"] > 0.999
    unrelated = held_out_fit(ridge(x, noise), fresh, rng.normal(size=(100, 14)))
    assert -0.05 < unrelated["r2"] < 0.05 and -0.05 < unrelated["r2_median"] < 0.05


def test_a_map_of_coordinates_from_the_left_changes_nothing():
    """Guards the first system's alignment: a k x k map of a basis keeps its span, and with it any overlap."""
    rng = np.random.default_rng(4)
    basis, other = (orthonormal(rng.normal(size=(3, 20))) for _ in range(2))
    before = subspace_overlaps(basis, other)
    assert subspace_overlaps(rotation(3) @ basis, other)[2] == pytest.approx(before[2])
    after = subspace_overlaps(basis @ rotation(20), other)
    assert np.abs(after - before).max() > 0.01
    assert subspace_overlaps(basis @ (turn := rotation(20)), orthonormal(basis @ turn)) == pytest.approx(1.0)


def test_widths_are_filled_up_or_cut():
    """Guards: the comparison without a map between models of different width."""
    rows = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(as_they_are(rows, 5)[:, 3:], 0)
    np.testing.assert_array_equal(as_they_are(rows, 2), rows[:, :2])


def test_orthonormal_rows_that_add_nothing_are_zero():
    """Guards: an arbitrary axis in place of one that the map has sent to zero."""
    basis = orthonormal(np.array([[2.0, 0, 0], [1.0, 0, 0], [0, 3.0, 0]]))
    np.testing.assert_allclose(np.abs(basis), [[1, 0, 0], [0, 0, 0], [0, 1, 0]], atol=1e-12)


def test_halves_are_disjoint_and_balanced():
    """Guards: two models that agree because their subspaces come from the same texts."""
    labels = ["joy"] * 9 + ["neutral"] * 12
    first, second = halves(labels, 0)
    assert not set(first) & set(second) and len(first) + len(second) == 21
    assert sum(labels[i] == "joy" for i in first) == 4


def test_depths():
    """Guards: layers paired by number between models of different depth."""
    assert layer_grid(12, 4) == [0, 4, 7, 11] and layer_grid(3, 8) == [0, 1, 2] and layer_grid(1, 5) == [0]
    assert [matching_layer(layer, 30, 12) for layer in (0, 15, 29)] == [0, 6, 11]
    assert matching_layer(0, 1, 12) == 0


def simulated(seed: int, d: int, turn: np.ndarray | None, shift: float) -> States:
    """A model of one layer whose texts lie about a direction of its own, or about a shared one that is turned."""
    rng = np.random.default_rng(100 if turn is not None else seed)
    scales = np.linspace(3, 0.3, d)
    words, texts = rng.normal(size=(2 * N_WORDS, d)) * scales, rng.normal(size=(2 * N_TEXTS, d)) * scales
    texts[:N_TEXTS, 5] += shift
    if turn is not None:
        words, texts = words @ turn, texts @ turn
    as_model = [values[:, None].astype(np.float32) for values in (texts, words[:N_WORDS], words[N_WORDS:])]
    norms = np.ones(1, np.float32)
    return States("m", "f", {"model_type": "llama", "blocks": "layers"}, as_model[0], norms, as_model[1], as_model[2])


LABELS = ["joy"] * N_TEXTS + ["neutral"] * N_TEXTS


def aligned(a: States, b: States, seed: int = 0, **given) -> Aligner:
    settings = asked(AlignSettings, **{"model_a": "a", "model_b": "b", "k_max": 3, "n_random": 200, "n_permutations": 60, "seed": seed, **given})
    return Aligner(settings, LABELS, "neutral", a, b)


@pytest.mark.parametrize("d_b", [16, 24])
def test_a_planted_rotation_raises_the_overlap_to_its_ceiling(d_b):
    """Guards: "0.1355 before, 0.1355 after": overlap must change, and reach what two halves of one model's texts reach."""
    turn = rotation(d_b, seed=9)[:16]
    a, b = simulated(0, 16, np.eye(16), 25.0), simulated(0, 16, turn, 25.0)
    tables = aligned(a, b).run()
    table = tables.overlap.set_index("k")
    assert table.loc[1, "overlap_before"] < 0.4 and table.loc[1, "overlap"] > 0.95
    np.testing.assert_allclose(table["overlap"], table["ceiling"], atol=0.02)
    assert table.loc[1, "permuted_p"] < 0.02 and table.loc[1, "null_p"] < 0.01
    assert (tables.maps["r2"] > 0.999).all()
    row = tables.directions.iloc[0]
    assert row["cosine_procrustes"] > 0.95 > 0.7 > abs(row["cosine_before"]) and row["auc"] > 0.95
    own = b.means[:N_TEXTS, 0].mean(axis=0) - b.means[N_TEXTS:, 0].mean(axis=0)
    np.testing.assert_allclose(tables.mapped["joy"].vectors[0], own, atol=0.02 * np.linalg.norm(own))


@pytest.mark.slow
def test_the_null_of_shuffled_labels_holds_its_level():
    """Guards: p-values that find a shared emotion in models of which one has none."""
    found = []
    for seed in range(60):
        a, b = simulated(2 * seed, 16, None, 0.0), simulated(2 * seed + 1, 16, None, 5.0)
        table = aligned(a, b, seed).run().overlap
        found.append(table["permuted_p"].to_numpy())
    p = np.array(found)
    assert (p < 0.05).mean() < 0.11  # measured over 200 seeds: 0.06, 0.06 and 0.075 at k = 1, 2 and 3
    assert stats.kstest(p[:, 0], "uniform").pvalue > 0.001


def test_words_are_paired_across_tokenizers():
    """Guards: positions of one tokenizer used in another model."""
    text = "You and the thing, you there."
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    positions = word_positions(tokenizer, text, True, "m")
    ends = [tokenizer.decode([0, *ids][1 : position + 1]) for position in positions]
    assert ends == ["You", "You and", "You and the", "You and the thing,", "You and the thing, you", text]
    letters = PreTrainedTokenizerFast(tokenizer_object=_letters(pre_tokenizers.Whitespace()), unk_token="?")
    assert len(word_positions(letters, text, True, "m")) == len(positions)
    assert word_positions(tokenizer, "A b", False, "m") == [1 + (len(tokenizer("A b", add_special_tokens=False)["input_ids"]) > 2)]


def _letters(split: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
    alphabet = {c: i for i, c in enumerate("? YyouandtheigrTk,.b")}
    tokenizer = Tokenizer(models.BPE(alphabet | {" t": len(alphabet)}, [(" ", "t")] if split is None else [], unk_token="?"))
    if split is not None:
        tokenizer.pre_tokenizer = split
    return tokenizer


def test_tokens_across_words_are_refused():
    """Guards: spans that differ, silently paired with the nearest."""
    merged = Tokenizer(models.BPE({c: i for i, c in enumerate(["?", "a", "b", " ", "a ", "a b"])}, [("a", " "), ("a ", "b")], unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merged, unk_token="?")
    with pytest.raises(UserError, match=r"no token ends where the word 'a' .*unit=text"):
        word_positions(tokenizer, "a b", True, "m")


WORDS = {"joy": "you you the and", "neutral": "ring brick stone grass"}


def write_prompts(path: Path, n: int = 12) -> Path:
    """Texts whose emotions differ in their words, with roles."""
    rng = np.random.default_rng(0)
    rows = []
    for emotion, words in WORDS.items():
        for i in range(2 * n if emotion == "neutral" else n):
            picked = rng.choice([*words.split(), "sun", "sea", "thing", "door", "lamp"], 6)
            role = "test" if i >= n else "fit"
            rows.append({"text": f"{i} {' '.join(picked)}", "emotion": emotion, "role": role})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def rotated_pair(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A tiny Llama and its copy with a rotated residual stream, as folders."""
    first = save_tiny(tmp_path / "first", "llama")
    second = save_tiny(tmp_path / "second", "llama")
    model = LlamaForCausalLM.from_pretrained(second)
    q = rotation(32, seed=5)
    rotate_llama(model, q)
    model.save_pretrained(second)
    return first, second, q


def greedy(folder: Path, vector: np.ndarray, layer: int) -> list[tuple[int, ...]]:
    """What the model writes after three prompts with the vector injected."""
    loaded = load(resolve(str(folder)), torch.device("cpu"), torch.float32)
    condition = Condition("emotion", "joy", layer, 3.0, scope="generated")
    patch = make_patch(condition, vector, None, 1.0, 12)
    rows = [Row(Cell("c", str(i), 0), (0, 20 + i, 50 + 7 * i), patch) for i in range(3)]
    decoded = PackDecoder(BlockStack(loaded.model), rows, Decoding(12, 12, 0.0, loaded.eos_ids)).run()
    return [item.tokens for item in sorted(decoded, key=lambda item: item.row.cell.prompt_id)]


@pytest.mark.slow
def test_a_rotated_copy_end_to_end(tmp_path: Path):
    """The strongest test: two models in different bases; directions carried over write what the model's own direction writes."""
    first, second, q = rotated_pair(tmp_path)
    texts = write_prompts(tmp_path / "texts.jsonl", 40)
    given = {"dataset": str(texts), "k_max": 3, "depths": 4, "n_permutations": 40, "device": "cpu"}
    outcome = run_align(asked(AlignSettings, model_a=first, model_b=second, **given), tmp_path / "out")
    table = pd.read_parquet(tmp_path / "out" / "overlap.parquet")
    # Not layer 0: the embeddings of the last letters of neutral words do not span the stream.
    equal = table[(table["layer_a"] == table["layer_b"]) & (table["k"] == 1) & (table["layer_a"] > 0)]
    assert (equal["overlap_before"] < 0.3).all() and (equal["overlap"] > equal["overlap_before"] + 0.25).all()
    np.testing.assert_allclose(equal["overlap"], equal["ceiling"], atol=0.02)
    maps = pd.read_csv(tmp_path / "out" / "maps.csv")
    assert (maps.loc[maps["layer_a"] == maps["layer_b"], "r2"] > 0.999).all()
    mapped, metadata = load_directions(tmp_path / "out" / "directions.safetensors")
    loaded = load(resolve(str(second)), torch.device("cpu"), torch.float32)
    assert metadata["model_fingerprint"] == loaded.fingerprint and mapped["joy"].vectors.shape == (4, 32)
    back, _ = load_directions(run_back(second, first, given, tmp_path))
    for layer in (1, 3):
        own = back["joy"].vectors[layer] @ q  # first's own direction (mapped from second), turned exactly
        assert greedy(second, mapped["joy"].vectors[layer], layer) == greedy(second, own, layer)
        assert greedy(second, mapped["joy"].vectors[layer], layer) != greedy(second, mapped["joy"].vectors[layer] @ q, layer)
    for name in ("overlap_by_k", "overlap_by_depth", "directions", "maps"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 5000
    assert outcome.kind == "alignment" and any("after" in line for line in outcome.lines)


def run_back(second: Path, first: Path, given: dict, tmp_path: Path) -> Path:
    run_align(asked(AlignSettings, model_a=second, model_b=first, **given), tmp_path / "back")
    return tmp_path / "back" / "directions.safetensors"


def test_models_of_different_width_and_family(tmp_path: Path):
    """Guards: shapes that only fit when both models are alike; unit=text, ridge, resid_post and no reference."""
    first = save_tiny(tmp_path / "first", "gpt2", n_layers=2)
    second = save_tiny(tmp_path / "second", "llama", n_layers=3, d_model=48)
    texts = write_prompts(tmp_path / "texts.jsonl")
    text = texts.read_text().replace('"neutral"', '"calm"')
    texts.write_text(text)
    given = {"k_max": 2, "depths": 2, "n_permutations": 5, "map": "ridge", "unit": "text", "site": "resid_post"}
    run_align(asked(AlignSettings, model_a=first, model_b=second, dataset=texts, device="cpu", **given), tmp_path / "out")
    table = pd.read_parquet(tmp_path / "out" / "overlap.parquet")
    assert set(table["emotion"]) == {"joy", "calm"} and len(table) == 2 * 2 * 2 * 2
    assert table[["overlap", "overlap_before", "permuted_mean", "ceiling"]].notna().all(axis=None)
    assert set(table["depth_b"]) == {1 / 3, 1.0}
    mapped, _ = load_directions(tmp_path / "out" / "directions.safetensors")
    assert mapped["joy"].vectors.shape == (3, 48) and mapped["joy"].site == "resid_post"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"map": "cca"}, "map='cca' is not one of procrustes, ridge"),
        ({"unit": "token"}, "unit='token' is not one of word, text"),
        ({"k_max": 30}, "k=30 components: 'joy' has 6 texts"),
        ({"depths": 0}, "at least 1"),
        ({"model_b": "/none/there"}, "no such folder"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(tmp_path: Path, change, match):
    """Guards: minutes of work before a mistake that could be known at once."""
    texts = write_prompts(tmp_path / "texts.jsonl")
    given = {"model_a": "smollm2-135m", "model_b": "smollm2-135m", "dataset": str(texts), **change}
    with pytest.raises(UserError, match=match):
        run_align(asked(AlignSettings, **given), tmp_path / "out")


@pytest.mark.parametrize("text", ["ありがとうございます。", "今日は天気がいい", "ขอบคุณมากครับ", "谢谢你的帮助", "អរគុណច្រើន"])
def test_words_without_spaces_are_not_one_word(text: str) -> None:
    """Guards: a whole Japanese text as one word, and the advice to use unit=word of who did."""
    with pytest.raises(UserError, match="without spaces between words.*use unit=text"):
        word_positions(tiny_tokenizer("gpt2"), f"{text} a", True, "m")
    assert word_positions(tiny_tokenizer("gpt2"), "감사합니다 여러분", True, "m"), "Korean has spaces"
