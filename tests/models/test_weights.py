"""Reading safetensors folders: what is refused, and what a digest sees."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from emo_mlflow.errors import UserError
from emo_mlflow.models import weights
from emo_mlflow.models.weights import (
    INDEX,
    SINGLE,
    count_parameters,
    read_headers,
    weight_files,
    weight_names,
    weights_digest,
)


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (30, 40), "b.bias": (7,), "scalar": (), "empty": (0, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_shards(folder: Path, content: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    names = sorted(content)
    save_file({name: content[name] for name in names[:2]}, folder / "model-1.safetensors")
    save_file({name: content[name] for name in names[2:]}, folder / "model-2.safetensors")
    weight_map = {name: f"model-{1 if name in names[:2] else 2}.safetensors" for name in names}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_single(folder: Path, content: dict[str, torch.Tensor], **metadata: str) -> Path:
    folder.mkdir()
    save_file(content, folder / SINGLE, metadata=metadata or None)
    return folder


def digest_of(folder: Path) -> str:
    return weights_digest(read_headers(folder))


def test_parameters_are_counted_without_reading_the_weights(tmp_path):
    """The memory estimate is exact, over one file or many."""
    for folder in (write_single(tmp_path / "one", tensors()), write_shards(tmp_path / "two", tensors())):
        assert count_parameters(read_headers(folder)) == 30 * 40 + 7 + 1


@pytest.mark.parametrize("limit", [2**31, 100])
def test_digest_depends_on_the_content_alone(tmp_path, monkeypatch, limit):
    """Sharding and metadata differ between machines and versions; the same weights must still be known as the same.
    With the low limit the sampled digest of large models is under test."""
    monkeypatch.setattr(weights, "FULL_DIGEST_BYTES", limit)
    one = digest_of(write_single(tmp_path / "one", tensors(), format="pt"))
    assert digest_of(write_shards(tmp_path / "two", tensors())) == one
    assert digest_of(write_single(tmp_path / "other", tensors(1))) != one
    renamed = tensors()
    renamed["c.bias"] = renamed.pop("b.bias")
    assert digest_of(write_single(tmp_path / "renamed", renamed)) != one


def test_digest_sees_one_changed_number(tmp_path):
    """Two checkpoints of one training run, or a damaged cache, differ in few bytes."""
    changed = tensors()
    changed["a.weight"][17, 3] += 1e-6
    assert digest_of(write_single(tmp_path / "a", tensors())) != digest_of(write_single(tmp_path / "b", changed))


@given(start=st.integers(0, 10**9), size=st.integers(0, 10**7))
def test_samples_stay_inside_their_tensor(start, size):
    """The sampled digest reads a tensor's own bytes, its first and its last among them."""
    spans = weights._samples(weights.StoredTensor(Path(), "F32", (), start, start + size))
    assert all(start <= first <= last <= start + size for first, last in spans)
    assert spans[0][0] == start and spans[-1][1] == start + size


def test_what_is_not_safetensors_is_refused(tmp_path):
    """Pickles are never read, and the message says what was found instead."""
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        weight_files(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    """A download that broke off, or an error page saved as weights, is a UserError and not a crash in the loader."""
    folder = write_single(tmp_path / "model", tensors())
    path = folder / SINGLE
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(UserError, match="cut off"):
        read_headers(folder)
    for broken in (b"", b"<html>no</html>", struct.pack("<Q", 2**62), struct.pack("<Q", 2) + b"[]", content[:100]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"not a safetensors file"):
            read_headers(folder)


def test_a_missing_shard_is_refused(tmp_path):
    """A model of which a part was not downloaded."""
    folder = write_shards(tmp_path / "model", tensors())
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-2\.safetensors"):
        read_headers(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '"text"', "null"])
def test_a_broken_index_is_refused(text):
    """An index that is no index."""
    with pytest.raises(UserError, match="not a sharding index"):
        weight_names(text)


@pytest.mark.parametrize("name", ["../secret.safetensors", "sub/x.safetensors", "pytorch_model.bin", 1])
def test_an_index_cannot_point_elsewhere(name):
    """An index from the hub must not make files outside its folder be read, nor pickles."""
    with pytest.raises(UserError, match="only safetensors"):
        weight_names(json.dumps({"weight_map": {"a": name}}))
