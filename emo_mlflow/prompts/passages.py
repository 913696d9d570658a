"""The built-in neutral passages: what damage to the model's predictions is measured on, and nobody steers."""

from __future__ import annotations

import json
from importlib.resources import files


def neutral_passages() -> tuple[str, ...]:
    """Short texts on everyday subjects, of one kind and about one length."""
    text = files("emo_mlflow").joinpath("data/neutral_passages.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line)["text"] for line in text.splitlines())
