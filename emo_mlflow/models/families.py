"""What differs between families of models: where their blocks are, and where attention writes into the stream."""

from __future__ import annotations

from typing import Any

from torch import nn

from emo_mlflow.errors import UserError

BLOCK_PATHS = (
    "transformer.h",  # gpt2, gpt_neo, gptj
    "gpt_neox.layers",  # pythia
    "model.layers",  # llama, qwen, gemma, mistral, phi
    "model.language_model.layers",  # text decoders inside multimodal models
    "model.decoder.layers",  # opt
)
OUTPUT_PROJECTION_PATHS = ("attn.c_proj", "attn.attention.out_proj", "attention.dense", "self_attn.o_proj", "self_attn.dense")


def _follow(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's decoder blocks.

    Raises:
        UserError: if not exactly one of the known paths leads to a list of modules.
    """
    found = [blocks for path in BLOCK_PATHS if isinstance(blocks := _follow(model, path), nn.ModuleList) and len(blocks)]
    if len(found) != 1:
        raise UserError(
            f"cannot find the decoder blocks of {type(model).__name__}: looked for {', '.join(BLOCK_PATHS)}; "
            "use a decoder-only model such as GPT-2, GPT-Neo, GPT-NeoX (Pythia), Llama, Qwen, Gemma or OPT"
        )
    return found[0]


def find_output_projection(block: nn.Module) -> nn.Module:
    """The linear map that mixes a block's attention heads into the residual stream; its input is the heads side by side.

    Raises:
        UserError: if not exactly one of the known paths leads to a module.
    """
    found = [module for path in OUTPUT_PROJECTION_PATHS if isinstance(module := _follow(block, path), nn.Module)]
    if len(found) != 1:
        raise UserError(f"cannot find the attention's output projection in {type(block).__name__}; heads need one of "
                        f"{', '.join(OUTPUT_PROJECTION_PATHS)}")
    return found[0]
