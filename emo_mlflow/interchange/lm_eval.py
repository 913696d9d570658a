"""Steering files of lm-evaluation-harness's `steered` model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emo_mlflow.errors import UserError
from emo_mlflow.types import FloatArray

# Where a family's blocks hang below `model.base_model`, by model_type; all others have `layers`.
HOOKPOINTS = {"gpt2": "h", "gpt_neo": "h", "gptj": "h", "opt": "decoder.layers", "gemma3_text": "model.layers"}


def write_lm_eval(path: Path, blocks: Mapping[int, FloatArray], model_type: str) -> None:
    """Writes what `lm_eval --model steered` reads as `steer_path`: per hookpoint, a vector that is added to a block's output.

    Raises:
        UserError: for a name that it would not read, or a place before block 0, which has no hookpoint.
    """
    if path.suffix not in (".pt", ".pth"):
        raise UserError(f"out={str(path)!r}: lm-evaluation-harness reads files that end in .pt")
    if min(blocks) < 0:
        raise UserError("the place before block 0 is no block's output: export from layer 1 on, as in layers=1-11")
    prefix = HOOKPOINTS.get(model_type, "layers")
    config: dict[str, dict[str, Any]] = {
        f"{prefix}.{block}": {
            "steering_vector": torch.from_numpy(np.array(vector)),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for block, vector in blocks.items()
    }
    torch.save(config, path)
