"""Texts to tokens and back, where a prompt and what continues it meet: the right answer is the tokenizer's own on the whole text."""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import write_texts
from tiny_models import save_tiny, tiny_tokenizer
from tiny_scorers import write_scorer
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emo_mlflow.interchange.first_system import export_legacy
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel, load
from emo_mlflow.models.names import ModelSpec
from emo_mlflow.models.tokens import encode, text_decoder
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.steering.choices import encode_item
from emo_mlflow.steering.decoding import PackDecoder
from emo_mlflow.steering.packing import Row
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.sweeping.plan import make_plan, prepare
from emo_mlflow.sweeping.run import run
from emo_mlflow.sweeping.stages import completion_batch
from emo_mlflow.types import Cell, Completion

WORDS = ("thank", "you", "such", "gratitude", "Sorry", "the", "s")


def like_llama_2() -> PreTrainedTokenizerFast:
    """Words behind `▁`, single letters and bytes; its decoder takes the first space away, as those of Llama 2 and Mistral do."""
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    pieces = ["▁", *letters, *(f"▁{word}" for word in WORDS)]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, *"TS"])}
    backend = Tokenizer(BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True, ignore_merges=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def like_bert() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[CLS]", "[SEP]", *WORDS, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("[UNK]", "[CLS]", "[SEP]")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]")


TOKENIZERS = {"llama 2": like_llama_2, "bert": like_bert, "byte level": tiny_tokenizer}


@pytest.fixture
def loaded(tmp_path) -> LoadedModel:
    return load(ModelSpec("tiny", "folder", str(save_tiny(tmp_path / "model", "llama"))), torch.device("cpu"), torch.float32)


def with_tokenizer(loaded: LoadedModel, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    loaded.model.config.vocab_size = max(loaded.model.config.vocab_size, len(tokenizer))
    return replace(loaded, tokenizer=tokenizer, document_start_id=tokenizer.bos_token_id)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_prompt_and_continuation_are_one_text(kind, loaded):
    """Guards: "Thank you so much" and "gratitude" joined to "suchgratitude", or two spaces, or half a character."""
    tokenizer = TOKENIZERS[kind]()
    decode = text_decoder(with_tokenizer(loaded, tokenizer))
    rng = np.random.default_rng(0)
    for prompt in ("thank you such", "the thank you ", "Sorry", "thank you such é"):
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        before = tokenizer.decode(asked)
        batch = [rng.integers(3, len(tokenizer), n).tolist() for n in (0, 1, 1, 1, 2, 5, 12) for _ in range(20)]
        for ids, text in zip(batch, decode(batch), strict=True):
            whole = tokenizer.decode([*asked, *ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            # Bytes of the prompt's last character, continued by more bytes, are no whole text to compare with.
            if whole.startswith(before):
                assert before + text == whole, (prompt, ids)


def test_a_sweeps_texts_have_the_space_that_the_model_wrote(tmp_path):
    """Guards: a completion of Llama 2 without its first space, which the scored and the exported text then lack."""
    tokenizer = like_llama_2()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **shape)).eval()
    words = [tokenizer.convert_tokens_to_ids(f"▁{word}") for word in WORDS]
    model.get_output_embeddings().weight.data[words] *= 20  # so that it writes words
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_scorer(tmp_path / "scorer")
    write_texts(tmp_path, ("joy", "neutral"))
    given = {"model": tmp_path / "model", "dataset": tmp_path / "data.jsonl", "scorers": tmp_path / "scorer", "layers": 1, "alphas": 1}
    given |= {"sequence_length": 4, "max_samples": 3, "num_random": 0, "device": "cpu", "score_prompt": "true"}
    plan = make_plan(prepare(make_config("smoke", {name: str(value) for name, value in given.items()})))
    result = run(plan, [], lambda pack: None, lambda *args: None)
    baseline = result.conditions.loc[result.conditions["kind"] == "baseline", "condition_id"].item()
    prompts = result.prompts.set_index("prompt_id")["text"]
    export_legacy(replace(result, config=asdict(result.config)), tmp_path / "out")
    exported = pickle.loads(next((tmp_path / "out").glob("*residual*")).read_bytes())["baseline"]["texts"]
    completions = result.completions[result.completions["condition_id"] == baseline]
    assert len(completions) == 3
    for row in completions.to_dict("records"):
        prompt = prompts[row["prompt_id"]]
        ids = torch.tensor([[1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        written = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False)[0].tolist()
        whole = tokenizer.decode(written, skip_special_tokens=True)
        assert exported[prompt] == whole and prompt + row["completion"] == whole
        assert plan.scoring().texts(completion_batch([completion_of(row)])) == [whole]
    assert completions["completion"].str.startswith(" ").any(), "no word begins a text, so this shows nothing"


def completion_of(row: dict[str, Any]) -> Completion:
    cell = Cell(row["condition_id"], row["prompt_id"], row["sample"])
    return Completion(cell=cell, **{item.name: row.get(item.name, 0) for item in fields(Completion) if item.name not in ("cell", "failure")})


def test_a_choice_has_the_tokens_that_it_has_behind_its_question(loaded):
    """Guards: an answer that begins with a bare `▁`, which no text of Llama 2 does."""
    tokenizer = like_llama_2()
    item = encode_item(with_tokenizer(loaded, tokenizer), "the such", ["you", "the gratitude"], prepend_bos=True)
    assert tokenizer.convert_ids_to_tokens(item.choices[0]) == ["▁you"]
    assert tokenizer.convert_ids_to_tokens(item.choices[1]) == ["▁the", "▁gratitude"]
    for choice, text in zip(item.choices, ["you", "the gratitude"], strict=True):
        whole = tokenizer(f"Question: the such\nAnswer: {text}", add_special_tokens=False)["input_ids"]
        assert [*item.question[1:], *choice] == whole


def test_control_tokens_in_a_text_are_told_of(loaded):
    """Guards: `<|end_of_text|>` in somebody's text, which ends it for the model, and nothing said."""
    with pytest.warns(UserWarning, match=r"1 of 2 texts hold control tokens .*<\|end_of_text\|>.* read as such"):
        found = encode(loaded, ["one <|end_of_text|> two", "three"], prepend_bos=True)
    assert loaded.tokenizer.eos_token_id in found[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(loaded, ["plain text", "of <b>two</b> lines\n"], prepend_bos=True)


def test_a_text_that_begins_as_a_document_does_not_begin_twice(loaded):
    """Guards: a rendered chat prompt of Llama 3 with two document-start tokens."""
    with pytest.warns(UserWarning, match="control tokens"):
        (found,) = encode(loaded, ["<|begin_of_text|>the"], prepend_bos=True)
    assert found == encode(loaded, ["the"], prepend_bos=True)[0]


def padded(folder: Path) -> Path:
    """A model whose vocabulary has 64 rows more than its tokenizer has tokens, and which likes these best."""
    save_tiny(folder, "llama")
    loaded = load(ModelSpec("tiny", "folder", str(folder)), torch.device("cpu"), torch.float32)
    size = loaded.model.config.vocab_size
    loaded.model.resize_token_embeddings(size + 64, mean_resizing=False)
    head = loaded.model.get_output_embeddings().weight
    head[size:] = 3 * head[:64]
    loaded.model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == size + 64
    return folder


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_what_is_no_token_is_never_chosen(temperature, tmp_path):
    """Guards: rows that pad a vocabulary to a round number, chosen and counted as text of which nothing can be read."""
    loaded = load(ModelSpec("tiny", "folder", str(padded(tmp_path / "padded"))), torch.device("cpu"), torch.float32)
    size = len(loaded.tokenizer)
    assert loaded.absent_ids == tuple(range(size, size + 64))
    prompt = encode(loaded, ["the one and you"], prepend_bos=True)[0]
    rows = [Row(Cell("base", "p", i), prompt, None, noise_seed=i) for i in range(20)]
    decoding = Decoding(8, 8, temperature, loaded.eos_ids, loaded.absent_ids)
    texts = [decoded.tokens for decoded in PackDecoder(BlockStack(loaded.model), rows, decoding).run()]
    assert max(map(max, texts)) < size
    plainly = loaded.model.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, suppress_tokens=[*loaded.absent_ids, *loaded.eos_ids], use_cache=False
    )
    if temperature == 0:
        assert texts[0] == tuple(plainly[0, len(prompt) :].tolist())
    with torch.no_grad():
        assert int(loaded.model(torch.tensor([prompt])).logits[0, -1].argmax()) >= size, "the model would have chosen one"
