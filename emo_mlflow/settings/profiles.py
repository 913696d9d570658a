"""Profiles: what several parameters of a sweep are together, for a purpose, unless they are given."""

from __future__ import annotations

PROFILES: dict[str, dict[str, str]] = {
    "smoke": {
        "max_samples": "6",
        "layers": "all/6",
        "alphas": "1.0,2.0",
        "scope": "generated",
        "num_random": "3",
        "sequence_length": "20",
    },
    "seed": {"emotions": "gratitude,anger,apology"},
    "baseline": {"emotions": "gratitude,anger,apology", "max_samples": "225", "num_random": "50"},
}
DEFAULT = "smoke"
OF_HEADS = {name: {key: text for key, text in values.items() if key != "scope"} for name, values in PROFILES.items()}  # theirs is for directions
