"""A GGUF file as a model: its weights are what the file holds, its tokenizer cuts as its vocabulary says, and what is not read is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf_models import of_bytes, of_pieces, tiny_llama, write_gguf
from tiny_models import tiny_tokenizer

from emo_mlflow.errors import UserError
from emo_mlflow.models import gguf_files
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel, check, load
from emo_mlflow.models.names import resolve

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))


def load_file(path) -> LoadedModel:
    spec = resolve(str(path))
    check(spec)
    return load(spec, CPU, torch.float32)


def test_a_file_is_the_model_that_it_holds(tmp_path):
    """Guards: queries and keys in llama.cpp's order, a weight that is another's, a configuration of defaults."""
    weights = write_gguf(tmp_path / "tiny-q8_0.gguf", of_pieces())
    loaded = load_file(tmp_path / "tiny-q8_0.gguf")
    state = loaded.model.state_dict()
    assert set(state) == set(weights) and all(torch.equal(state[name], weights[name]) for name in weights)
    plain = tiny_llama(len(of_pieces().tokens))
    plain.load_state_dict(weights)
    tokens = torch.tensor([[1, 300, 301, 302, 303]])
    assert torch.allclose(loaded.model(tokens).logits, plain(tokens).logits, atol=1e-5)
    assert (loaded.n_layers, loaded.d_model, loaded.context, loaded.document_start_id, loaded.eos_ids) == (2, 64, 128, 1, (1, 2))
    assert loaded.quantisation == "Q8_0 16, F32 5" and loaded.spec.source == "gguf"
    assert BlockStack(loaded.model).n_layers == 2


def test_llama_3s_rotary_scaling_is_read(tmp_path):
    """Llama 3.1 and 3.2 hold it as a tensor, which transformers leaves out. Guards: another model past a few thousand tokens, in silence."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    plain = tiny_llama(len(of_pieces().tokens), rope_scaling=scaling)
    inverse = tiny_llama(len(of_pieces().tokens)).model.rotary_emb.inv_freq
    factors = (inverse / plain.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert factors.min() == 1 and factors.max() == pytest.approx(8)
    plain.load_state_dict(write_gguf(tmp_path / "x.gguf", of_pieces(), {"rope_freqs.weight": factors}))
    tokens = torch.arange(100)[None] % 40 + 260
    assert torch.allclose(load_file(tmp_path / "x.gguf").model(tokens).logits, plain(tokens).logits, atol=1e-5)


def test_a_file_is_converted_once(tmp_path, monkeypatch):
    write_gguf(tmp_path / "one.gguf", of_pieces())
    first = load_file(tmp_path / "one.gguf")
    (tmp_path / "elsewhere.gguf").write_bytes((tmp_path / "one.gguf").read_bytes())
    monkeypatch.setattr(gguf_files, "_convert", lambda *args: pytest.fail("it was there"))
    again = load_file(tmp_path / "elsewhere.gguf")
    assert again.fingerprint == first.fingerprint and again.quantisation == first.quantisation


def test_words_of_the_vocabulary_are_one_token(tmp_path):
    """Guards: transformers' reading of Gemma's file, in which "there" becomes "t", "he", "re", and nothing is said."""
    write_gguf(tmp_path / "pieces.gguf", of_pieces())
    tokenizer = load_file(tmp_path / "pieces.gguf").tokenizer
    assert tokenizer.tokenize("there you, them 12") == ["▁there", "▁you", ",", "▁them", "▁", "1", "2"]
    assert tokenizer.tokenize("é") == ["▁", "<0xC3>", "<0xA9>"]
    for text in ("thank you", " a  b\n", "naïve 你好 🙂"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    write_gguf(tmp_path / "cut.gguf", of_pieces(reachable=False))
    with pytest.raises(UserError, match=r"its tokenizer cuts 'there' into .*which its vocabulary has whole"):
        load_file(tmp_path / "cut.gguf")


def test_byte_level_vocabularies_cut_as_their_published_tokenizers(tmp_path):
    write_gguf(tmp_path / "bytes.gguf", of_bytes())
    loaded, published = load_file(tmp_path / "bytes.gguf"), tiny_tokenizer("gpt2")
    for text in ("the thing and you", "naïve café 你好 🙂", "I'm 1234.5%\n\n\t the"):
        assert loaded.tokenizer(text, add_special_tokens=False)["input_ids"] == published(text, add_special_tokens=False)["input_ids"]
    assert loaded.document_start_id == 0
    write_gguf(tmp_path / "llama3.gguf", of_bytes("llama-bpe"))
    backend = load_file(tmp_path / "llama3.gguf").tokenizer.backend_tokenizer
    assert [word for word, _ in backend.pre_tokenizer.pre_tokenize_str("12345 you've")] == ["123", "45", "Ġyou", "'ve"]


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: write_gguf(path, of_bytes("some-new-rule")), "its tokenizer .*some-new-rule.* is none that is read"),
        (lambda path: write_gguf(path, of_pieces(), {"rope_freqs.weight": np.full(8, 2.0, np.float32)}), "transformers reads .* without 'rope_freqs"),
        (lambda path: path.write_bytes(b"GGUF and no more"), "not a GGUF file that can be read"),
        (lambda path: path.write_bytes(b""), "not a GGUF file that can be read"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, write, match):
    """Guards: rotary factors that are left out (Llama 3.1), a vocabulary cut by another's rule, and tracebacks."""
    write(tmp_path / "x.gguf")
    with pytest.raises(UserError, match=match) as caught:
        load_file(tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "models").glob("gguf-*[0-9a-f]")), "nothing half made is kept"


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    """Guards: "there is no such folder" for a file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"there is no such file: looked for {tmp_path}/x\.gguf"):
        resolve("x.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.gguf").touch()
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"give model=.*folder/x\.gguf"):
        check(resolve(str(tmp_path / "folder")))
