"""Chat templates: token ids are the tokenizer's own, a document starts once, an answer ends, and what cannot be is refused early."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_models import TEMPLATES, save_chat, without_template
from tiny_models import save_tiny

from emo_mlflow.directions.activations import text_means
from emo_mlflow.errors import UserError
from emo_mlflow.models import loading
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.chat import REQUEST, chat_tokens, end_of_turn, end_tokens, resolved_form, turns
from emo_mlflow.models.embedded import is_converted
from emo_mlflow.models.loading import LoadedModel, load, load_tokenizer
from emo_mlflow.models.names import ModelSpec, resolve
from emo_mlflow.models.tokens import encode_fit_texts, encode_prompts
from emo_mlflow.settings.templates import Form
from emo_mlflow.types import Prompt, Role

CPU = torch.device("cpu")
ENDS = {"smollm2": "<|im_end|>", "qwen3": "<|im_end|>", "llama": "<|end_of_text|>", "gemma3": "<eos>"}
TEXTS = ["Thank you and the others.", "the", "You there!\n\nAnd  the rest, é 🙂"]


@dataclass(frozen=True)
class Asked:
    """Settings, as far as the form of texts goes."""

    template: str = "chat"
    system: str = ""
    fit_on: str | None = None
    prepend_bos: bool = True


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("chat")
    return {kind: load(spec_of(save_chat(folder / kind, kind)), CPU, torch.float32) for kind in TEMPLATES}


def texts(role: Role) -> list[Prompt]:
    return [Prompt(text, "joy", role) for text in TEXTS]


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec(str(folder), "folder", str(folder))


def rendered(loaded: LoadedModel, *roles_and_texts: str, answer: bool) -> list[int]:
    """Token ids of a conversation as its tokenizer makes them."""
    conversation = [{"role": role, "content": text} for role, text in zip(roles_and_texts[::2], roles_and_texts[1::2], strict=True)]
    return loaded.tokenizer.apply_chat_template(conversation, add_generation_prompt=answer, enable_thinking=False, return_dict=False)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_token_ids_are_the_templates_and_a_document_starts_once(models, kind):
    """Guards: a second BOS in front, a prompt without the generation prompt, a model that thinks aloud, text beside the template."""
    loaded = models[kind]
    for system in ("", "Be brief.") if kind != "gemma3" else ("",):
        found = encode_prompts(loaded, texts("test"), Form("chat", system))
        for text, tokens in zip(TEXTS, found, strict=True):
            before = ["system", system] if system else []
            assert list(tokens) == rendered(loaded, *before, "user", text, answer=True)
            assert tokens.count(loaded.document_start_id) == (kind in ("llama", "gemma3"))
    plain = loaded.tokenizer("the", add_special_tokens=False)["input_ids"]
    assert encode_prompts(loaded, texts("test")[1:2], Form()) == [(loaded.document_start_id, *plain)]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_text_to_fit_on_is_the_assistants_answer(models, kind):
    """The answer follows the generation prompt, and is what the template writes of it up to the end of turn; the right tokens are measured."""
    loaded = replace(models[kind], context=1000)
    asked = len(rendered(loaded, "user", REQUEST, answer=True))
    for fit_on in ("response", "text", "last"):
        found = encode_fit_texts(loaded, texts("fit"), Form("chat", fit_on=fit_on))
        for text, tokens, first in zip(TEXTS, found.tokens, found.first, strict=True):
            whole = rendered(loaded, "user", REQUEST, "assistant", text, answer=False)
            assert list(tokens) == whole[: len(tokens)] and whole[len(tokens)] == end_of_turn(loaded.tokenizer)
            assert first == {"response": asked, "text": 1, "last": len(tokens) - 1}[fit_on]
    plain = encode_fit_texts(loaded, texts("fit"), Form(fit_on="last"))
    assert plain.first == tuple(len(tokens) - 1 for tokens in plain.tokens)


def test_means_are_of_the_measured_tokens(models):
    """Guards: the request, or the template's own tokens, in a mean of the answer; norms of other tokens than the means."""
    loaded = models["qwen3"]
    stack = BlockStack(loaded.model)
    for fit_on in ("response", "text", "last"):
        fitted = encode_fit_texts(loaded, texts("fit"), Form("chat", fit_on=fit_on))
        means, norms = text_means(stack, fitted, "resid_pre")
        for i, (tokens, first) in enumerate(zip(fitted.tokens, fitted.first, strict=True)):
            with torch.no_grad():
                states = loaded.model(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states
            expected = torch.stack(states[: stack.n_layers])[:, 0, first:]
            np.testing.assert_allclose(means[i], expected.mean(dim=1), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(norms[i], expected.norm(dim=-1).mean(dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_end_of_a_turn_ends_a_text(models, kind, tmp_path):
    """Also where the model's configuration does not say so."""
    loaded = replace(models[kind], eos_ids=(0,))
    turn = loaded.tokenizer.convert_tokens_to_ids(ENDS[kind])
    assert end_of_turn(loaded.tokenizer) == turn
    assert end_tokens(loaded, Form("chat")) == tuple(sorted({0, turn}))
    assert end_tokens(loaded, Form()) == (0,)


def test_auto_is_chat_where_the_model_ends_turns(tmp_path):
    """A base model that carries its family's template is none to chat with: it ends documents, and not turns."""
    folder = save_chat(tmp_path / "model", "smollm2")
    assert resolved_form(spec_of(folder), Asked("auto")) == Form("chat", fit_on="response")
    assert resolved_form(spec_of(folder), Asked("auto", "Be kind.", "last")) == Form("chat", "Be kind.", fit_on="last")
    tokenizer, ends = load_tokenizer(spec_of(folder))
    assert end_of_turn(tokenizer) in ends
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace('"eos_token_id": 4', '"eos_token_id": 0').replace('"eos_token_id": 2', '"eos_token_id": 0'))
    assert end_of_turn(tokenizer) not in load_tokenizer(spec_of(folder))[1]
    assert resolved_form(spec_of(folder), Asked("auto")) == Form()
    assert resolved_form(spec_of(folder), Asked("chat")).template == "chat"
    assert resolved_form(spec_of(save_tiny(tmp_path / "base", "gpt2")), Asked("auto")) == Form()


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("gemma3", Asked(system="Be kind."), r"refuses a system turn \(.*System role not supported.*\): leave out system="),
        (None, Asked(), "this model's tokenizer has no chat template: use template=none"),
        (None, Asked("auto", system="Be kind."), r"system='Be kind.' needs a chat template"),
        (None, Asked("auto", fit_on="response"), "fit_on=response needs a chat template"),
        ("llama", Asked(prepend_bos=False), "prepend_bos=false with template=chat"),
        ("llama", Asked("auto", prepend_bos=False), "prepend_bos=false with template=chat"),
    ],
)
def test_what_a_template_cannot_do_is_refused_before_the_weights_are_read(tmp_path, monkeypatch, kind, asked, message):
    folder = save_chat(tmp_path / "model", kind or "llama")
    if kind is None:
        without_template(folder)
    monkeypatch.setattr(loading, "_load_model", lambda *args: 1 / 0)
    with pytest.raises(UserError, match=message) as caught:
        resolved_form(spec_of(folder), asked)
    assert "\n" not in str(caught.value)


def test_a_template_that_fails_is_a_line(models):
    """A template is a program: whatever it does wrong is said in a line."""
    tokenizer = models["llama"].tokenizer
    working = tokenizer.chat_template
    try:
        for broken in ("{% for %}", "{{ messages[7]['content'] }}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}"):
            tokenizer.chat_template = broken
            with pytest.raises(UserError, match=r"refuses a user's turn \(.*use template=none"):
                chat_tokens(tokenizer, turns("Hello", ""))
    finally:
        tokenizer.chat_template = working


@pytest.mark.skipif(not is_converted(), reason="the embedded model is not here")
def test_the_embedded_model_is_one_to_chat_with():
    """Its published template: a system turn of its own, and the user's words between the marks of a turn."""
    spec = resolve("smollm2-135m")
    assert resolved_form(spec, Asked("auto")) == Form("chat", fit_on="response")
    tokenizer, _ = load_tokenizer(spec)
    own = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    asked = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    tokens = chat_tokens(tokenizer, turns("Hello", ""))
    assert tokenizer.decode(tokens) == own + asked and tokens[0] == 1
    assert tokenizer.decode(chat_tokens(tokenizer, turns("Hello", "Be kind."))) == "<|im_start|>system\nBe kind.<|im_end|>\n" + asked
