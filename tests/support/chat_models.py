"""Tiny models with chat templates that behave as the published ones do: a system turn of their own, a thinking block, a BOS, a refusal."""

from __future__ import annotations

from pathlib import Path

from tiny_models import save_tiny, tiny_tokenizer
from transformers import AutoTokenizer

from emo_mlflow.models.embedded import CHAT_TEMPLATE

_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"

TEMPLATES = {
    "smollm2": CHAT_TEMPLATE,  # puts in a system turn of its own
    # Qwen3: thinks first, unless it is told not to; then the block that it leaves empty is in the prompt and in the answer.
    "qwen3": (
        "{% set empty = '<think>\n\n</think>\n\n' %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (empty if m['role'] == "
        "'assistant' and loop.last else '') + m['content'] + '<|im_end|>\n' }}{% endfor %}" + _ANSWER + "{% if enable_thinking is defined and "
        "enable_thinking is false %}{{ empty }}{% endif %}{% endif %}"
    ),
    # Llama 3: a BOS, and text that is trimmed.
    "llama": (
        "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']\n\n' + (m['content'] | trim) + '<|end_of_text|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
    ),
    # Gemma 2: a BOS, no system turn, and turns that must alternate.
    "gemma3": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}{{ 'turn of ' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + (m['content'] | trim) + '<eos>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'turn of model\n' }}{% endif %}"
    ),
}  # fmt: skip
FAMILY = {"smollm2": "llama", "qwen3": "qwen3", "llama": "llama", "gemma3": "gemma3"}  # of the model beneath a tokenizer


def save_chat(folder: Path, kind: str, seed: int = 0) -> Path:
    """Writes a tiny instruct model: a tokenizer of that kind with its template, and a model whose end token ends a turn."""
    save_tiny(folder, FAMILY[kind], seed)
    tokenizer = tiny_tokenizer(kind)
    tokenizer.chat_template = TEMPLATES[kind]
    tokenizer.save_pretrained(folder)
    return folder


def without_template(folder: Path) -> Path:
    """Takes the template out of a saved model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return folder
