"""Directions in other tools' files: read back by these tools' rules, injected at the same place, refused when damaged."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import reference_logits
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from tiny_models import FAMILIES, save_tiny, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from emo_mlflow.directions.files import load_directions, save_directions
from emo_mlflow.errors import UserError
from emo_mlflow.interchange.vector_files import ExportSettings, ImportSettings, export_vectors, import_vectors
from emo_mlflow.models.families import identity_of
from emo_mlflow.steering.edits import make_patch
from emo_mlflow.steering.packing import Row
from emo_mlflow.types import Cell, Condition, Direction

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(4, 32)).astype(np.float32)


def write(path: Path, site: str = "resid_pre", basis: np.ndarray | None = None, **metadata: str) -> Path:
    directions = {name: Direction(name, site, VECTORS * i, basis) for i, name in enumerate(("joy", "fear"), start=1)}
    save_directions(path, directions, {"model_type": "llama", **metadata})
    return path


def read_gguf(path: Path) -> dict[int, np.ndarray]:
    """The tensors `direction.N` of a control vector, by N."""
    return {int(tensor.name.removeprefix("direction.")): tensor.data for tensor in gguf.GGUFReader(path).tensors}


def write_as_repeng(path: Path, directions: dict[int, np.ndarray], architecture: str = "controlvector") -> Path:
    """What repeng's export_gguf writes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    writer.add_uint32(f"{architecture}.layer_count", len(directions))
    for layer, vector in directions.items():
        writer.add_tensor(f"direction.{layer}", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_repengs_vectors_become_directions_of_a_model(tmp_path: Path):
    """Guards: layers off by one, and vectors of one model that a sweep would take for another's."""
    model = save_tiny(tmp_path / "model", "llama")
    source = write_as_repeng(tmp_path / "v.gguf", {1: VECTORS[1], 3: VECTORS[3]})
    with pytest.raises(UserError, match="how many layers.*--model"):
        import_vectors(ImportSettings(source, tmp_path / "d.safetensors"))
    said = import_vectors(ImportSettings(source, tmp_path / "d.safetensors", "joy", str(model)))
    assert "--site resid_post" in said
    found, metadata = load_directions(tmp_path / "d.safetensors")
    assert found["joy"].site == "resid_post" and len(metadata["model_fingerprint"]) == 16
    np.testing.assert_array_equal(found["joy"].vectors, [0 * VECTORS[0], VECTORS[1], 0 * VECTORS[2], VECTORS[3]])
    wide = save_tiny(tmp_path / "wide", "llama", d_model=64)
    for other in (wide, save_tiny(tmp_path / "short", "llama", n_layers=3)):
        with pytest.raises(UserError, match=r"width 32 up to block 3, but .* has [34] blocks of width"):
            import_vectors(ImportSettings(source, tmp_path / "d.safetensors", "joy", str(other)))


def test_round_trip_through_each_format(tmp_path: Path):
    """Guards: numbers, layers or names lost on the way out and back."""
    source = write(tmp_path / "d.safetensors", "resid_post")
    for name in ("v.gguf", "v.safetensors"):
        settings = ExportSettings(source, tmp_path / name, name.partition(".")[2], "joy", layers="2-3")
        export_vectors(settings)
        import_vectors(ImportSettings(tmp_path / name, tmp_path / "back.safetensors", "joy"))
        found, _ = load_directions(tmp_path / "back.safetensors")
        np.testing.assert_array_equal(found["joy"].vectors[2:], VECTORS[2:])
        assert not found["joy"].vectors[:2].any() and found["joy"].site == "resid_post"


def steered(model, hooks: dict[str, torch.Tensor], tokens: tuple[int, ...]) -> torch.Tensor:
    """What lm-evaluation-harness's SteeredModel computes: forward hooks by name below base_model add to a block's output."""
    handles = []
    for name, module in model.base_model.named_modules():
        if name in hooks:

            def add(module, args, output, vector=hooks[name]):
                return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

            handles.append(module.register_forward_hook(add))
    assert len(handles) == len(hooks), "lm_eval: Not all hookpoints could be resolved"
    try:
        with torch.no_grad():
            return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_steered_model_equals_the_sweeps_scope_all(tmp_path: Path, family, site):
    """Guards: hookpoints that do not exist in a family, and a vector that acts one block beside where the sweep injects it."""
    model = tiny_model(family)
    source = write(tmp_path / "d.safetensors", site)
    kind = model.config.model_type
    export_vectors(ExportSettings(source, tmp_path / "s.pt", "lm-eval", "joy", "2", alpha=2.0, model_type=kind))
    config = torch.load(tmp_path / "s.pt", weights_only=True)
    (entry,) = config.values()
    assert entry["action"] == "add" and entry["bias"] is None and entry["head_index"] is None
    hooks = {name: item["steering_vector"] * item["steering_coefficient"] for name, item in config.items()}
    tokens = (0, 5, 6, 7)
    condition = Condition("emotion", "joy", 2, 2.0, scope="all", site=site)
    row = Row(Cell("c", "p", 0), tokens, make_patch(condition, VECTORS[2], None, 1.0, 1))
    expected = reference_logits(model, row, [])[0]
    torch.testing.assert_close(steered(model, hooks, tokens), expected, rtol=1e-4, atol=1e-4)
    assert (steered(model, {}, tokens) - expected).abs().max() > 0.01


# Types whose blocks are called otherwise below `base_model` than below the model, or than most types' are; and one of most.
SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "pad_token_id": 0}
AS_OTHERS_CALL_IT = {
    "falcon": ("h", {}),
    "codegen": ("h", {"rotary_dim": 8}),
    "gpt_bigcode": ("h", {}),
    "gptj": ("h", {"rotary_dim": 8}),
    "opt": ("decoder.layers", {"word_embed_proj_dim": 32, "ffn_dim": 64}),
    "phi": ("layers", {"intermediate_size": 64}),
    "olmo2": ("layers", {"intermediate_size": 64}),
}


def model_of_type(kind: str, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | changes)).float().eval()


def with_pictures() -> PreTrainedModel:
    """Gemma 3 as `gemma3_12b` is: its text decoder says that it is a gemma3_text, whose blocks alone are elsewhere."""
    text = {name: value for name, value in SMALL.items() if name != "pad_token_id"}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "query_pre_attn_scalar": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=96)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize("kind", [*FAMILIES, *AS_OTHERS_CALL_IT, "gemma3"])
@pytest.mark.parametrize("said", ["file", "type"])
def test_lm_eval_finds_the_blocks_of_every_family(tmp_path: Path, kind, said):
    """Guards: hookpoints of Falcon, CodeGen, GPT-BigCode and multimodal Gemma 3 that lm-eval does not find; found by its own search."""
    if kind == "gemma3":
        model, expected = with_pictures(), "model.language_model.layers"
    elif kind in FAMILIES:
        model, expected = tiny_model(kind), identity_of(tiny_model(kind))["blocks"]
    else:
        model, expected = model_of_type(kind, **AS_OTHERS_CALL_IT[kind][1]), AS_OTHERS_CALL_IT[kind][0]
    identity, named = identity_of(model), model.config.model_type if said == "type" else None
    source = write(tmp_path / "d.safetensors", "resid_post", **(identity if said == "file" else {}))
    export_vectors(ExportSettings(source, tmp_path / "s.pt", "lm-eval", "joy", "2", model_type=named))
    config = torch.load(tmp_path / "s.pt", weights_only=True)
    assert list(config) == [f"{expected}.2"]
    hooks = {name: item["steering_vector"] for name, item in config.items()}
    changed, clean = steered(model, hooks, (1, 5, 6, 7)), steered(model, {}, (1, 5, 6, 7))
    patch = make_patch(Condition("emotion", "joy", 2, 1.0, scope="all", site="resid_post"), VECTORS[2], None, 1.0, 1)
    torch.testing.assert_close(changed, reference_logits(model, Row(Cell("c", "p", 0), (1, 5, 6, 7), patch), [])[0], rtol=1e-4, atol=1e-4)
    assert (changed - clean).abs().max() > 1e-3


def test_a_type_that_transformers_does_not_have_is_refused(tmp_path: Path):
    """Guards: hookpoints guessed; lm-eval would say no more than that it cannot resolve them."""
    for kind in ("no_such_type", "mamba"):
        with pytest.raises(UserError, match="where a model of type .* has its blocks|decoder blocks of Mamba"):
            export_vectors(
                ExportSettings(write(tmp_path / "d.safetensors"), tmp_path / "s.pt", "lm-eval", "joy", "2", model_type=kind)
            )


def test_control_vector_acts_where_the_sweep_does(tmp_path: Path):
    """Guards: llama.cpp adds direction.N to the output of block N, so what was measured before block L is direction.(L - 1)."""
    export_vectors(ExportSettings(write(tmp_path / "d.safetensors"), tmp_path / "v.gguf", emotion="joy", layers="2,3"))
    directions = read_gguf(tmp_path / "v.gguf")
    np.testing.assert_array_equal(directions[1], VECTORS[2])
    np.testing.assert_array_equal(directions[2], VECTORS[3])


def test_a_subspace_is_written_as_what_it_injects(tmp_path: Path):
    """Guards: the whole mean difference written where only its part in the subspace is injected."""
    basis = np.linalg.qr(RNG.normal(size=(4, 32, 2)))[0].swapaxes(1, 2).astype(np.float32)
    source = write(tmp_path / "d.safetensors", "resid_post", basis)
    export_vectors(ExportSettings(source, tmp_path / "v.gguf", emotion="joy", layers="2"))
    patch = make_patch(Condition("emotion", "joy", 2, 1.0), VECTORS[2], basis[2], 1.0, 1)
    np.testing.assert_allclose(read_gguf(tmp_path / "v.gguf")[2], patch.shift, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"emotion": "awe"}, "emotion=awe is not in the file: give one of fear, joy"),
        ({"emotion": None}, "give one of fear, joy"),
        ({"layers": "9"}, "layer 9 does not exist"),
        ({"layers": "all"}, "cannot act before the output of block 1"),
        ({"format": "lm-eval"}, r"files that end in \.pt"),
        ({"format": "lm-eval", "out": "x.pt", "layers": "0"}, "no block's output"),
        ({"alpha": float("nan")}, "zero or not finite"),
        ({"directions": "none.safetensors"}, "cannot read"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path: Path, change, match):
    """Guards: a file that the other tool refuses, or would read as something else."""
    given = {"directions": write(tmp_path / "d.safetensors"), "out": tmp_path / "v.gguf", "emotion": "joy", "layers": "2"}
    paths = {name: tmp_path / value for name, value in change.items() if name in ("out", "directions")}
    with pytest.raises(UserError, match=match):
        export_vectors(ExportSettings(**(given | change | paths)))


def test_the_kind_of_model_must_be_known(tmp_path: Path):
    """Guards: hookpoints or a hint of the wrong family, guessed."""
    save_directions(tmp_path / "d.safetensors", {"joy": Direction("joy", "resid_pre", VECTORS)}, {})
    with pytest.raises(UserError, match="--model-type"):
        export_vectors(ExportSettings(tmp_path / "d.safetensors", tmp_path / "v.gguf", layers="2"))


def test_block_tensors_of_a_safetensors_file(tmp_path: Path):
    """Guards: files of other tools that name a tensor per block."""
    save_file({f"layers.{i}": VECTORS[i].astype(np.float16) for i in (0, 2)}, str(tmp_path / "v.safetensors"))
    model = save_tiny(tmp_path / "model", "llama")
    import_vectors(ImportSettings(tmp_path / "v.safetensors", tmp_path / "d.safetensors", "joy", str(model)))
    found, _ = load_directions(tmp_path / "d.safetensors")
    np.testing.assert_allclose(found["joy"].vectors[2], VECTORS[2], atol=1e-3)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"a": VECTORS[0]}, "does not name one block"),
        ({"a.1": VECTORS[0], "b.1": VECTORS[0]}, "does not name one block"),
        ({"a.1": VECTORS}, "not one vector"),
        ({"a.1": VECTORS[0] * np.float32("nan")}, "finite"),
        ({"a.1": np.arange(4)}, "not one vector"),
        ({"a.1": VECTORS[0], "a.2": VECTORS[0, :5]}, "different widths"),
    ],
)
def test_damaged_vectors_are_refused(tmp_path: Path, tensors, match):
    """Guards: a sweep over numbers that are none, or over a matrix read as a vector."""
    save_file(tensors, str(tmp_path / "v.safetensors"))
    with pytest.raises(UserError, match=match):
        import_vectors(ImportSettings(tmp_path / "v.safetensors", tmp_path / "d.safetensors", "joy"))


def test_other_gguf_files_are_refused(tmp_path: Path):
    """Guards: a model's weights taken for a control vector."""
    source = write_as_repeng(tmp_path / "v.gguf", {1: VECTORS[1]}, "llama")
    with pytest.raises(UserError, match="no control vector: its architecture is 'llama'"):
        import_vectors(ImportSettings(source, tmp_path / "d.safetensors"))
    with pytest.raises(UserError, match="no vectors"):
        import_vectors(ImportSettings(write_as_repeng(tmp_path / "e.gguf", {}), tmp_path / "d.safetensors"))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["cut", "flip", "noise"]), st.sampled_from([".gguf", ".safetensors"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_never_crash(tmp_path: Path, seed, how, suffix):
    """Guards: tracebacks from the depths of a parser for files that were cut off or changed on the way."""
    rng = np.random.default_rng(seed)
    source = write(tmp_path / "d.safetensors", "resid_post")
    export_vectors(ExportSettings(source, tmp_path / "v.gguf", emotion="joy", layers="1-3"))
    data = bytearray((tmp_path / ("v.gguf" if suffix == ".gguf" else "d.safetensors")).read_bytes())
    if how == "cut":
        data = data[: rng.integers(0, len(data))]
    elif how == "flip":
        for _ in range(4):
            data[rng.integers(0, min(len(data), 400))] ^= int(rng.integers(1, 256))
    else:
        data = bytearray(rng.bytes(200))
    (tmp_path / f"damaged{suffix}").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_vectors(ImportSettings(tmp_path / f"damaged{suffix}", tmp_path / "out.safetensors", "joy"))
        except UserError:
            return
    load_directions(tmp_path / "out.safetensors")


def test_imported_directions_get_no_path_for_a_name(tmp_path):
    save_file({"layer.0": np.ones(4, np.float32)}, str(tmp_path / "v.safetensors"))
    with pytest.raises(UserError, match="not a name"):
        import_vectors(ImportSettings(tmp_path / "v.safetensors", tmp_path / "o.safetensors", emotion="../x"))


@pytest.mark.parametrize("name", ["layer_2_vector", "direction.2", "model.layers.2", "2", "steering_vector_layer2", "h.2.v1", "joy.2"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_names_and_types_of_other_tools_are_read(tmp_path: Path, name: str, kind: torch.dtype):
    """Guards: bfloat16, which NumPy lacks, and names whose block is not their end, as torch.save and other tools write them."""
    vector = torch.from_numpy(VECTORS[2]).to(kind)
    save_torch({name: vector[None] if kind is torch.float16 else vector}, str(tmp_path / "v.safetensors"))
    model = save_tiny(tmp_path / "model", "llama")
    import_vectors(ImportSettings(tmp_path / "v.safetensors", tmp_path / "d.safetensors", "joy", str(model)))
    found = load_directions(tmp_path / "d.safetensors")[0]["joy"].vectors
    np.testing.assert_array_equal(found[2], vector.float().numpy())
    assert not found[[0, 1, 3]].any()


def test_a_vector_without_a_number_needs_its_block(tmp_path: Path):
    save_torch({"v": torch.from_numpy(VECTORS[0])}, str(tmp_path / "v.safetensors"))
    model, out = str(save_tiny(tmp_path / "model", "llama")), tmp_path / "d.safetensors"
    with pytest.raises(UserError, match="--block says it"):
        import_vectors(ImportSettings(tmp_path / "v.safetensors", out, "joy", model))
    import_vectors(ImportSettings(tmp_path / "v.safetensors", out, "joy", model, block=3))
    np.testing.assert_array_equal(load_directions(out)[0]["joy"].vectors[3], VECTORS[0])


def test_one_tensor_of_all_layers_is_read(tmp_path: Path):
    """Guards: rows that are one off where the embeddings are the first, as in `hidden_states`."""
    model, out = str(save_tiny(tmp_path / "model", "llama")), tmp_path / "d.safetensors"
    save_torch({"directions": torch.from_numpy(VECTORS).bfloat16()}, str(tmp_path / "v.safetensors"))
    expected = torch.from_numpy(VECTORS).bfloat16().float().numpy()
    for name in (None, model):
        import_vectors(ImportSettings(tmp_path / "v.safetensors", out, "joy", name))
        np.testing.assert_array_equal(load_directions(out)[0]["joy"].vectors, expected)
    save_torch({"directions": torch.from_numpy(np.concatenate([9 * VECTORS[:1], VECTORS]))}, str(tmp_path / "v.safetensors"))
    import_vectors(ImportSettings(tmp_path / "v.safetensors", out, "joy", model))
    np.testing.assert_array_equal(load_directions(out)[0]["joy"].vectors, VECTORS)


def test_the_norm_is_said(tmp_path: Path):
    """Guards: unit vectors that are swept at alpha 1 beside streams of norm 100, and do nothing."""
    units = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    for vectors, said in ((units, r"norm 1\).*--alpha-unit residual"), (5 * units, r"norm 5\).*resid_post$"), (VECTORS, r"norms \d.*resid_post$")):
        save_file({"v": vectors}, str(tmp_path / "v.safetensors"))
        assert re.search(said, import_vectors(ImportSettings(tmp_path / "v.safetensors", tmp_path / "d.safetensors", "joy")))


def test_one_layer_is_written_by_default_and_the_hint_runs(tmp_path: Path):
    """Guards: all layers at once, which break the text; a place before block 1, which llama.cpp refuses; a command that lacks its model."""
    scores = json.dumps({"joy": {"0": 0.9, "1": 0.8, "2": 0.3, "3": 0.5}, "fear": {}})
    start = {"model_name": "smollm2", "document_start": "<|endoftext|>", "document_start_by": "text"}
    source = write(tmp_path / "d.safetensors", layer_scores=scores, **start)
    said = export_vectors(ExportSettings(source, tmp_path / "v.gguf", "gguf", "joy"))
    assert list(read_gguf(tmp_path / "v.gguf")) == [2] and "(layer 3, the best of joy)" in said
    assert f"llama-completion -m smollm2.gguf --control-vector {tmp_path / 'v.gguf'} -no-cnv --temp 0 -p '<|endoftext|>" in said
    export_vectors(ExportSettings(source, tmp_path / "s.pt", "lm-eval", "joy"))
    assert list(torch.load(tmp_path / "s.pt", weights_only=True)) == ["layers.0"]
    with pytest.raises(UserError, match="run 7f does not say which layer of 'fear' is best: give --layers, such as --layers 2"):
        export_vectors(ExportSettings(source, tmp_path / "v.gguf", "gguf", "fear", named="run 7f"))
    by_itself = write(tmp_path / "e.safetensors", layer_scores=scores, **(start | {"document_start_by": "tokenizer"}))
    assert "-p 'I told her that'" in export_vectors(ExportSettings(by_itself, tmp_path / "v.gguf", "gguf", "joy"))
