"""Data sets for tests, written where a command finds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np


def write_texts(folder: Path, emotions: Iterable[str], n: int = 8) -> None:
    """data.jsonl with n texts per emotion, which name it; without roles."""
    _write(folder, [{"text": f"{name} text {i} is here", "emotion": name} for name in emotions for i in range(n)])


def write_worded_texts(folder: Path, words: Mapping[str, str], n_fit: int, n_test: int) -> None:
    """data.jsonl with texts of four words each, drawn from those of their emotion, so that directions differ; with roles."""
    rng = np.random.default_rng(0)
    rows = [
        {"text": f"{emotion[0]}{i} {' '.join(rng.choice(own.split(), 4))}", "emotion": emotion, "role": "fit" if i < n_fit else "test"}
        for emotion, own in words.items()
        for i in range(n_fit + n_test)
    ]
    _write(folder, rows)


def _write(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
