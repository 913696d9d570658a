"""Control vectors read by repeng itself, and repeng's read by us. CI installs repeng beside the environment: it asks for NumPy 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference import reference_logits
from tiny_models import save_tiny, tiny_model

from emo_mlflow.directions.files import load_directions, save_directions
from emo_mlflow.interchange.vector_files import ExportSettings, ImportSettings, export_vectors, import_vectors
from emo_mlflow.steering.edits import make_patch
from emo_mlflow.steering.packing import Row
from emo_mlflow.types import Cell, Condition, Direction

with pytest.MonkeyPatch.context() as patched:
    patched.setattr(np, "float_", np.float64, raising=False)  # NumPy 2 has no such name, which an annotation of repeng's reads
    repeng = pytest.importorskip("repeng", reason="repeng is not installed; CI installs it without its dependencies")

VECTORS = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32) * 5
PROMPT = (5, 20, 30, 40, 50)


def test_repeng_injects_our_vector_where_a_sweep_does(tmp_path: Path):
    """Guards: a layer off by one, a key that repeng does not read, a vector that is scaled on the way."""
    save_directions(tmp_path / "d.safetensors", {"joy": Direction("joy", "resid_pre", VECTORS)}, {"model_type": "llama"})
    export_vectors(ExportSettings(tmp_path / "d.safetensors", tmp_path / "joy.gguf", "gguf", "joy", layers="2-3", alpha=1.5))
    vector = repeng.ControlVector.import_gguf(tmp_path / "joy.gguf")
    assert vector.model_type == "llama" and set(vector.directions) == {1, 2}
    condition = Condition("emotion", "joy", 2, 1.5, scope="all")
    row = Row(Cell("c", "p", 0), PROMPT, make_patch(condition, VECTORS[2], None, 1.0, 1))
    expected = reference_logits(tiny_model("llama"), row, [])[0]
    model = repeng.ControlModel(tiny_model("llama"), [1])
    model.set_control(vector)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
    np.testing.assert_allclose(logits.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_file_that_repeng_wrote_becomes_directions(tmp_path: Path):
    """Guards: a reader that knows our own writer's files only."""
    vector = repeng.ControlVector(model_type="llama", directions={layer: VECTORS[layer] for layer in (1, 2, 3)})
    vector.export_gguf(tmp_path / "theirs.gguf")
    model = save_tiny(tmp_path / "model", "llama")
    import_vectors(ImportSettings(tmp_path / "theirs.gguf", tmp_path / "d.safetensors", "joy", str(model)))
    direction = load_directions(tmp_path / "d.safetensors")[0]["joy"]
    assert direction.site == "resid_post"
    np.testing.assert_array_equal(direction.vectors[1:], VECTORS[1:])
    assert not direction.vectors[0].any()

