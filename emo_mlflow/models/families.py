"""All that differs between families of models: where their parts are, as data. The one place to add a family.

Nothing here is trusted: a model is refused where not exactly one path fits, or where its blocks, run one by one, do not give its own
logits (blocks.BlockStack).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from emo_mlflow.errors import UserError, reason_of


@dataclass(frozen=True)
class Family:
    """Where a family's parts are, as paths of attribute names.

    Attributes:
        name: as people call it.
        blocks: from the model to the list of its decoder blocks.
        projections: from a block to the linear map that mixes attention heads into the residual stream; its input is the heads side
            by side. Empty where heads cannot be replaced.
    """

    name: str
    blocks: str
    projections: tuple[str, ...] = ()


_SELF_ATTENTION = ("self_attn.o_proj", "self_attn.dense")  # the second in Phi

FAMILIES = (
    Family("GPT-2", "transformer.h", ("attn.c_proj",)),  # GPT-BigCode
    Family("GPT-Neo", "transformer.h", ("attn.attention.out_proj",)),
    Family("Falcon", "transformer.h"),  # GPT-J, CodeGen
    Family("GPT-NeoX (Pythia)", "gpt_neox.layers", ("attention.dense",)),
    Family("Llama, Qwen, Gemma", "model.layers", _SELF_ATTENTION),  # Mistral, Phi, OLMo
    Family("Gemma 3 with pictures", "model.language_model.layers", _SELF_ATTENTION),
    Family("OPT", "model.decoder.layers"),
)


UNLIMITED = 2**31


def _follow(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def another_family() -> str:
    """What to do with a model that cannot be steered."""
    return f"use a decoder-only model such as {', '.join(family.name for family in FAMILIES)}"


def context_of(config: Any) -> int:
    """The most tokens that a text of a model may have, as its configuration says; `UNLIMITED` where it says nothing, as with ALiBi.

    Args:
        config: of the text model.
    """
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"))
    return next((number for number in named if isinstance(number, int) and number > 0), UNLIMITED)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's decoder blocks.

    Raises:
        UserError: if not exactly one of the known paths leads to a list of modules.
    """
    paths = dict.fromkeys(family.blocks for family in FAMILIES)
    found = [blocks for path in paths if isinstance(blocks := _follow(model, path), nn.ModuleList) and len(blocks)]
    if len(found) != 1:
        raise UserError(
            f"cannot find the decoder blocks of {type(model).__name__}: looked for {', '.join(paths)}; "
            f"{another_family()}"
        )
    return found[0]


def find_output_projection(block: nn.Module) -> nn.Module:
    """The linear map that mixes a block's attention heads into the residual stream; its input is the heads side by side.

    Raises:
        UserError: if not exactly one of the known paths leads to a module.
    """
    paths = dict.fromkeys(path for family in FAMILIES for path in family.projections)
    found = [module for path in paths if isinstance(module := _follow(block, path), nn.Module)]
    if len(found) != 1:
        raise UserError(
            f"cannot find the attention's output projection in {type(block).__name__}; heads need one of {', '.join(paths)}"
        )
    return found[0]


def switch_of_positions(model: nn.Module) -> int | None:
    """The most tokens that a text of a model with LongRoPE (Phi-3) may have for its positions to be encoded as those of a short one.

    None for models whose encoding of a position does not depend on how long the text is.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(module, "rope_type", None) == "longrope" and config is not None:
            scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
            named = getattr(config, "original_max_position_embeddings", None) or scaling.get("original_max_position_embeddings")
            return int(named or config.max_position_embeddings)
    return None


def head_count(model: PreTrainedModel) -> int:
    """Query heads per block; under grouped-query attention they share keys and values, and each has an output of its own."""
    return int(model.config.get_text_config().num_attention_heads)


def weight_by_head(projection: nn.Module, n_heads: int) -> Tensor:
    """An output projection's weight, [n_heads, head_dim, d_model]: a head's output times its part is what it adds."""
    weight = cast(Tensor, projection.weight).detach()
    by_input = weight.T if isinstance(projection, nn.Linear) else weight  # GPT-2's Conv1D keeps [in, out]
    return by_input.unflatten(0, (n_heads, -1))


def blocks_below_base(model: PreTrainedModel) -> str:
    """The path from `model.base_model` to the blocks: how tools that search there (lm-evaluation-harness) name them."""
    blocks = find_blocks(model)
    return next(name for name, module in model.base_model.named_modules() if module is blocks)


def blocks_below_base_of(model_type: str) -> str:
    """`blocks_below_base` of the class that transformers has for a `model_type`, for files that do not say it; built without weights.

    Raises:
        UserError: if there is no such class here, or it is of no known family.
    """
    try:
        config = AutoConfig.for_model(model_type)
        config.get_text_config().num_hidden_layers = 1
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a class raises that cannot be made from its defaults
        raise UserError(
            f"cannot tell where a model of type {model_type!r} has its blocks ({reason_of(error, 200)}): give --model-type as "
            "the model's config.json has it, or fit the directions again, and the file will say"
        ) from None
    return blocks_below_base(model)


def identity_of(model: PreTrainedModel) -> dict[str, str]:
    """What vector files say of the model that they are for, so that other tools inject at the right place."""
    return {"model_type": model.config.get_text_config().model_type, "blocks": blocks_below_base(model)}
