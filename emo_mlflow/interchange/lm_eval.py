"""Steering files of lm-evaluation-harness's `steered` model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emo_mlflow.errors import UserError
from emo_mlflow.types import FloatArray


def write_lm_eval(path: Path, vectors: Mapping[int, FloatArray], blocks: str) -> None:
    """Writes what `lm_eval --model steered` reads as `steer_path`: per hookpoint, a vector that is added to a block's output.

    Args:
        vectors: by block.
        blocks: where the model has its blocks, as `families.blocks_below_base` gives it: that tool looks for its hookpoints among the
            names of `model.base_model.named_modules()` (lm_eval/models/hf_steered.py, `steer`).

    Raises:
        UserError: for a name that it would not read, or a place before block 0, which has no hookpoint.
    """
    if path.suffix not in (".pt", ".pth"):
        raise UserError(f"out={str(path)!r}: lm-evaluation-harness reads files that end in .pt")
    if min(vectors) < 0:
        raise UserError("the place before block 0 is no block's output: export from layer 1 on, as in layers=1-11")
    config: dict[str, dict[str, Any]] = {
        f"{blocks}.{block}": {
            "steering_vector": torch.from_numpy(np.array(vector)),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for block, vector in vectors.items()
    }
    torch.save(config, path)
