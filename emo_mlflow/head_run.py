"""Heads of a model, ranked by their direct effect on an emotion, and the interventions on them that generation tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from emo_mlflow.alignment import halves
from emo_mlflow.config import resolve_layers
from emo_mlflow.errors import UserError
from emo_mlflow.heads import HeadStates, direct_effects, head_count, head_states, head_writes, heads_add_up, unranked
from emo_mlflow.layers import BlockStack
from emo_mlflow.models import check, load, pick_device, resolve
from emo_mlflow.outcome import Outcome, write_config
from emo_mlflow.prompts import fit_hash, load_prompts
from emo_mlflow.readout import contrasts
from emo_mlflow.report.heads import write_heads_report
from emo_mlflow.spreadsheet import write_csv
from emo_mlflow.sweep import encode
from emo_mlflow.types import FloatArray, Prompt, digest

HeadOperation = Literal["zero", "mean", "patch", "restore"]
Screen = Literal["top", "all"]


@dataclass(frozen=True)
class HeadSettings:
    """What `heads` is asked for.

    Attributes:
        layers: whose heads are candidates.
        operation: what a head's output is replaced by: zero; mean, its mean over the reference's texts; patch, its mean over the
            emotion's texts (neutral prompts get what the emotion leaves); restore, its mean over the reference's texts in prompts of the
            emotion (these lose it).
        screen: top, the heads with the largest direct effects; all, every head of the layers.
        top: how many per emotion.
        target_layer: the direct effect is on the stream after this block; None for the last.
    """

    model: str = "smollm2-135m"
    dataset: str = "builtin"
    emotions: tuple[str, ...] | None = None
    layers: str = "all"
    operation: HeadOperation = "zero"
    screen: Screen = "top"
    top: int = 20
    target_layer: int | None = None
    prepend_bos: bool = True
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class HeadIntervention:
    """One head whose output before the output projection is replaced.

    Attributes:
        replacement: float32 [head_dim].
    """

    emotion: str
    layer: int
    head: int
    operation: HeadOperation
    replacement: FloatArray

    @property
    def intervention_id(self) -> str:
        """A hash of what defines the intervention."""
        return digest([self.emotion, self.layer, self.head, self.operation], 12)


def candidates(effects: pd.DataFrame, layers: Sequence[int], screen: Screen, top: int) -> pd.DataFrame:
    """The rows of the heads that generation tests, per emotion the largest direct effect first."""
    order = effects[effects["layer"].isin(layers)].sort_values("rank", kind="stable")
    parts = [order[order["emotion"] == emotion] for emotion in dict.fromkeys(effects["emotion"])]
    return pd.concat(parts if screen == "all" else [part.head(top) for part in parts], ignore_index=True)


def interventions(
    chosen: pd.DataFrame, states: HeadStates, labels: Sequence[str], reference: str | None, operation: HeadOperation
) -> list[HeadIntervention]:
    """The interventions on the chosen heads, with what each puts in the head's place.

    Args:
        states: of texts that are not among the prompts to be continued.
    """
    means: dict[str, FloatArray] = {}
    for emotion, used, positive in contrasts(labels, reference):
        rows = used[positive] if operation == "patch" else used[~positive]
        means[emotion] = states.heads[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
        if operation == "zero":
            means[emotion] = np.zeros_like(means[emotion])
    return [
        HeadIntervention(str(emotion), int(layer), int(head), operation, means[str(emotion)][int(layer), int(head)])
        for emotion, layer, head in chosen[["emotion", "layer", "head"]].itertuples(index=False)
    ]


def restore_split(prompts: Sequence[Prompt], emotion: str, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """For `restore`: the texts that means are taken of, and the emotion's other texts, which are continued."""
    first, second = halves([prompt.emotion for prompt in prompts], seed)
    return [prompts[i] for i in first], [prompts[i] for i in second if prompts[i].emotion == emotion]


def run_heads(settings: HeadSettings, out: Path) -> Outcome:
    """Ranks heads and writes heads.csv, candidates.csv, replacements.safetensors, figures and report into `out`.

    Raises:
        UserError: for anything that the user can mend, before the model is loaded where it can be known by then.
    """
    _check_choices(settings)
    device, spec = pick_device(settings.device), resolve(settings.model)
    prompts = load_prompts(settings.dataset, emotions=settings.emotions, max_samples=1, seed=settings.seed)
    settings = replace(settings, emotions=prompts.emotions)
    check(spec, device, getattr(torch, settings.dtype))
    loaded = load(spec, device, getattr(torch, settings.dtype))
    stack = BlockStack(loaded.model)
    layers = resolve_layers(settings.layers, stack.n_layers)
    target = stack.n_layers - 1 if settings.target_layer is None else settings.target_layer
    if not max(layers) <= target < stack.n_layers:
        raise UserError(
            f"target_layer={target} is not from {max(layers)}, the last of the layers, to {stack.n_layers - 1}"
        )
    settings = replace(settings, target_layer=target)
    ranked = settings.screen == "top" or heads_add_up(stack)
    writes = head_writes(stack) if ranked else ()
    labels = [prompt.emotion for prompt in prompts.fit]
    tokens = encode(loaded, [prompt.text for prompt in prompts.fit], settings.prepend_bos)
    states = head_states(stack, tokens, target)
    if ranked:
        effects = direct_effects(states, writes, labels, prompts.reference, target, settings.seed)
    else:
        effects = unranked(labels, prompts.reference, target + 1, head_count(stack))
    chosen = candidates(effects, layers, settings.screen, settings.top)
    found = interventions(chosen, states, labels, prompts.reference, settings.operation)
    facts = {
        "model_fingerprint": loaded.fingerprint,
        "n_layers": stack.n_layers,
        "n_heads": head_count(stack),
        "reference": prompts.reference,
        "prompt_source": prompts.source,
        "fit_hash": fit_hash(prompts.fit),
    }
    _save(out, settings, effects, chosen, found, loaded.fingerprint)
    write_config(out, asdict(settings), facts)
    write_heads_report(effects, chosen, settings.model, target, out)
    return Outcome("heads", f"heads {settings.model}", facts, _metrics(effects), tuple(_lines(chosen, target)))


def _save(
    out: Path,
    settings: HeadSettings,
    effects: pd.DataFrame,
    chosen: pd.DataFrame,
    found: Sequence[HeadIntervention],
    fingerprint: str,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_csv(effects, out / "heads.csv")
    write_csv(chosen.assign(intervention_id=[item.intervention_id for item in found]), out / "candidates.csv")
    tensors = {item.intervention_id: item.replacement for item in found}
    save_file(
        tensors,
        str(out / "replacements.safetensors"),
        metadata={"model_fingerprint": fingerprint, "operation": settings.operation},
    )


def _check_choices(settings: HeadSettings) -> None:
    for name, value, kinds in (("operation", settings.operation, HeadOperation), ("screen", settings.screen, Screen)):
        if value not in get_args(kinds):
            raise UserError(f"{name}={value!r} is not one of {', '.join(get_args(kinds))}")
    if settings.top < 1:
        raise UserError(f"top={settings.top} leaves no head: give at least 1")


def _metrics(effects: pd.DataFrame) -> tuple[tuple[str, float, int], ...]:
    """Per emotion and layer: what its heads write together, and the largest of them."""
    by_layer = effects.groupby(["emotion", "layer"], sort=False, as_index=False)["direct_effect"]
    total, largest = by_layer.sum(), by_layer.agg(lambda shares: shares.abs().max())
    return tuple(
        (f"direct_effect.{name}.{emotion}", float(value), int(layer))
        for name, table in (("sum", total), ("largest", largest))
        for emotion, layer, value in table.itertuples(index=False)
    )


def _lines(chosen: pd.DataFrame, target: int) -> list[str]:
    """Per emotion its strongest heads."""
    if chosen["direct_effect"].isna().all():
        return ["", f"{len(chosen)} heads, not ranked: this model normalises what attention writes", ""]
    lines = ["", f"Heads by their share of the emotion's displacement after block {target} (95% interval)", ""]
    for emotion, rows in chosen.groupby("emotion", sort=False):
        parts = [
            f"{layer}.{head} {effect:+.3f} ({low:+.3f} to {high:+.3f})"
            for layer, head, effect, low, high in rows[["layer", "head", "direct_effect", "low", "high"]]
            .head(5)
            .itertuples(index=False)
        ]
        lines.append(f"{emotion}: {', '.join(parts)}")
    return [*lines, ""]
