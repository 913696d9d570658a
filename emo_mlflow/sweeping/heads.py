"""A sweep over attention heads: every head ranked by its direct effect on an emotion, and the conditions in which generation tests them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from emo_mlflow.directions.heads import (
    HeadStates,
    direct_effects,
    head_states,
    head_writes,
    unranked,
)
from emo_mlflow.directions.readouts import contrasts
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.families import head_count
from emo_mlflow.prompts.selection import PromptSet
from emo_mlflow.settings.scopes import scope_and_windows
from emo_mlflow.settings.sweep import HeadConfig
from emo_mlflow.steering.operations import HEAD_REPLACEMENTS
from emo_mlflow.sweeping.swept import SweptHeads
from emo_mlflow.types import Condition, FitTexts, FloatArray, Screen, digest


def over_heads(
    prompts: PromptSet, config: HeadConfig, stack: BlockStack, texts: FitTexts
) -> tuple[SweptHeads, tuple[Condition, ...]]:
    """The model's heads, ranked by direct effect, and the conditions in which they are replaced.

    Args:
        texts: those that directions and replacements are measured on.

    Raises:
        UserError: for heads that cannot be ranked where ranks are asked for.
    """
    swept = _screen(stack, config, texts, [prompt.emotion for prompt in prompts.fit], prompts.reference)
    return swept, tuple(head_conditions(config, swept.effects))


def _screen(
    stack: BlockStack, config: HeadConfig, texts: FitTexts, labels: Sequence[str], reference: str | None
) -> SweptHeads:
    target = config.target_layer
    states = head_states(stack, texts, target)
    writes = head_writes(stack)
    if writes is None and config.screen == "top":
        raise UserError(
            f"{type(stack.model).__name__} has something other than a factor between its heads and the stream, such as a norm, so heads have no "
            "direct effects to rank them by: use screen=all"
        )
    if writes is not None:
        effects = direct_effects(states, writes, labels, reference, target, config.seed)
    else:
        effects = unranked(labels, reference, target + 1, head_count(stack.model))
    return SweptHeads(effects, target, replacements(states, labels, reference, config.operation))


def replacements(
    states: HeadStates, labels: Sequence[str], reference: str | None, operation: str
) -> dict[str, FloatArray]:
    """What an operation puts in each head's place, by emotion: float32 [n_layers, n_heads, head_dim].

    Args:
        states: of texts that are not among the prompts to be continued.
    """
    found: dict[str, FloatArray] = {}
    for emotion, used, positive, _ in contrasts(labels, reference):
        own, others = (
            states.heads[rows].mean(axis=0, dtype=np.float64).astype(np.float32) for rows in (used[positive], used[~positive])
        )
        found[emotion] = HEAD_REPLACEMENTS[operation].replacement(own, others)
    return found


def candidates(effects: pd.DataFrame, layers: Sequence[int], screen: Screen, top: int) -> pd.DataFrame:
    """The rows of the heads that generation tests, per emotion the largest direct effect first."""
    order = effects[effects["layer"].isin(layers)].sort_values("rank", kind="stable")
    parts = [order[order["emotion"] == emotion] for emotion in dict.fromkeys(effects["emotion"])]
    return pd.concat(parts if screen == "all" else [part.head(top) for part in parts], ignore_index=True)


def head_conditions(config: HeadConfig, effects: pd.DataFrame) -> Iterator[Condition]:
    """The baseline, then each emotion's heads, and control heads drawn at random from the others of the same layers.

    Controls are an emotion's, not a single head's: each head is compared with all of them. There are fewer than asked for where
    the layers have no more heads.
    """
    yield Condition("baseline")
    scope, windows = scope_and_windows(config.scope, config.patch_window)
    chosen = candidates(effects, config.layers, config.screen, config.top)
    for (emotion, rows), window in itertools.product(chosen.groupby("emotion", sort=False), windows):
        common = Condition(
            kind="emotion",
            emotion=str(emotion),
            alpha=1.0,
            scope=scope,
            patch_window=window,
            operation=config.operation,
        )
        heads = list(zip(rows["layer"].astype(int), rows["head"].astype(int), strict=True))
        yield from (replace(common, layer=layer, head=head) for layer, head in heads)
        for draw, (layer, head) in enumerate(_controls(config, effects, str(emotion), set(heads))):
            yield replace(common, kind="random", layer=layer, head=head, draw=draw, seed=config.seed)


def _controls(
    config: HeadConfig, effects: pd.DataFrame, emotion: str, chosen: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Other heads of the layers in an order that depends on seed and emotion alone, so that more draws add to fewer."""
    own = effects[(effects["emotion"] == emotion) & effects["layer"].isin(config.layers)].sort_values(["layer", "head"])
    pool = list(zip(own["layer"].astype(int), own["head"].astype(int), strict=True))
    key = int(digest(["control heads", config.seed, emotion], 8), 16)
    order = np.random.RandomState(key).permutation(len(pool))
    return [pool[i] for i in order if pool[i] not in chosen][: config.num_random]
