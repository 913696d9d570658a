"""A study laid out: what it reads, checked; the model, the directions and the design; all before the first steered text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np
import torch

from emo_mlflow.common.machine import pick_device
from emo_mlflow.directions.activations import deviations, text_means
from emo_mlflow.directions.controls import check_controls
from emo_mlflow.directions.fitting import choose_direction
from emo_mlflow.directions.readouts import judge
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.chat import resolved_form
from emo_mlflow.models.loading import LoadedModel, check, load
from emo_mlflow.models.names import ModelSpec, resolve
from emo_mlflow.models.tokens import encode_fit_texts, encode_prompts
from emo_mlflow.prompts.columns import Layout
from emo_mlflow.prompts.selection import PromptSet, load_prompts
from emo_mlflow.scoring import rubric
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.scoring.protocol import Scorers
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.settings.direction_choice import parse_direction
from emo_mlflow.settings.scopes import scope_and_windows
from emo_mlflow.settings.study import StudySettings, check_emotions, value_of
from emo_mlflow.settings.templates import form_of
from emo_mlflow.statistics.sequential import Looks
from emo_mlflow.steering.strength import budget_meter, passage_tokens
from emo_mlflow.studying.arms import Arms, Sources
from emo_mlflow.studying.items import Question, load_items
from emo_mlflow.studying.protocol import (
    MOST_DEPTHS,
    Design,
    Place,
    Reading,
    check_labels,
    choose_layers,
    draws_limit,
    order_of,
)
from emo_mlflow.types import Prompt, Tokens

FEWEST = 6
FIRST_LOOK = 10  # prompts after which a clear difference from one random direction decides


@dataclass(frozen=True, eq=False)
class StudyInputs:
    """Everything that a study reads, checked, before anything expensive is done."""

    settings: StudySettings
    prompts: PromptSet
    labels: Mapping[str, str]
    scorers: Scorers
    items: Sequence[Question]
    spec: ModelSpec
    device: torch.device


def prepare_study(settings: StudySettings) -> StudyInputs:
    """Reads and checks the data set, the scorers, the device and the model's name.

    Raises:
        UserError: for anything that the user can mend.
    """
    device, spec = pick_device(settings.device), resolve(settings.model)
    prompts = load_prompts(
        settings.dataset,
        emotions=settings.emotions,
        max_samples=settings.max_samples,
        seed=settings.seed,
        layout=Layout.of(settings),
        pairs=settings.pairs,
        personas=settings.personas,
    )
    for values, what in ((settings.layers, "layers"), (settings.alpha, "alpha")):
        check_emotions(values, prompts.emotions, what)
    if prompts.reference is None and not prompts.groups:
        raise UserError(f"{prompts.source} has no neutral texts: a study needs them to fit on and to continue; give some the emotion neutral")
    if len(prompts.test) < FEWEST:
        missing = FEWEST - len(prompts.test)
        raise UserError(f"{prompts.source} has {len(prompts.test)} prompts to continue: a study needs {FEWEST}, so {missing} more")
    check_controls(settings.controls, [prompt.emotion for prompt in prompts.fit], prompts.reference)
    if any(map(rubric.is_judge, settings.scorers)):
        raise UserError("a study needs every text's score, and a judge may give none: judge its texts in a sweep")
    scorers = load_scorers(settings.scorers)
    labels = check_labels(prompts.emotions, {e: target_metric(e, scorers.metrics) for e in prompts.emotions}, scorers.metrics)
    items = load_items(settings.items)
    check(spec, device, getattr(torch, settings.dtype))
    form = resolved_form(spec, settings, (*prompts.fit, *prompts.test))
    settings = replace(settings, template=form.template, fit_on=form.fit_on)
    return StudyInputs(settings, prompts, labels, scorers, items, spec, device)


@dataclass(frozen=True, eq=False)
class StudyPlan:
    """A study laid out.

    Attributes:
        tokens: by prompt id, of the prompts and of the second set.
        passages: neutral texts that nobody steered, as token ids.
    """

    inputs: StudyInputs
    loaded: LoadedModel
    stack: BlockStack
    design: Design
    arms: Arms
    tokens: Mapping[str, Tokens]
    second: Sequence[Prompt]
    passages: Sequence[Tokens]


def lay_out(inputs: StudyInputs) -> StudyPlan:
    """Loads the model, fits directions, and fixes the design.

    Raises:
        UserError: for a layer that the model does not have, or a prompt or a text that does not fit.
    """
    settings, prompts = inputs.settings, inputs.prompts
    loaded = load(inputs.spec, inputs.device, getattr(torch, settings.dtype))
    stack = BlockStack(loaded.model)
    second = tuple(Prompt(row["text"], "neutral", "test") for row in _rows("second_prompts.jsonl"))
    tokens = _tokens(loaded, [*prompts.test, *second], settings)
    stack.check_lengths({len(ids) for ids in tokens.values()}, settings.sequence_length)
    texts = encode_fit_texts(loaded, prompts.fit, form_of(settings))
    means, norms = text_means(stack, texts, settings.site, fingerprint=loaded.fingerprint)
    labels = [prompt.emotion for prompt in prompts.fit]
    directions = choose_direction(settings.direction, means, labels, prompts.reference, settings.site)
    sources = Sources(settings.direction, directions, norms.mean(axis=0), means, labels, prompts.reference, prompts.groups)
    places = _places(inputs, _readings(sources, settings), loaded.n_layers)
    design = _design(settings, places, prompts.test, second)
    layers = {layer for place in places for layer in place.layers}
    if "covariance" in settings.controls:
        sources = replace(sources, deviations=deviations(stack, texts, settings.site, layers))
    boundaries = {layer + (settings.site == "resid_post") for layer in layers}
    meter = budget_meter(loaded, stack, boundaries, settings.prepend_bos)
    passages = passage_tokens(loaded, settings.prepend_bos)
    return StudyPlan(inputs, loaded, stack, design, Arms(design, sources, meter), tokens, second, passages)


def _design(settings: StudySettings, places: tuple[Place, ...], prompts: Sequence[Prompt], second: Sequence[Prompt]) -> Design:
    n, (name, windows) = len(prompts), scope_and_windows(settings.scope, [settings.patch_window])
    return Design(
        places=places,
        direction=settings.direction,
        controls=settings.controls,
        procedure=settings.procedure,
        limit=draws_limit(settings.procedure, len(places)),
        looks=Looks((FIRST_LOOK, n) if n > FIRST_LOOK else (n,)),
        prompts=tuple(prompt.prompt_id for prompt in prompts),
        second=tuple(prompt.prompt_id for prompt in second),
        scope=name,
        patch_window=windows[0],
        site=settings.site,
        sequence_length=settings.sequence_length,
        temperature=settings.temperature,
        seed=settings.seed,
        template=settings.template,
        system=settings.system,
        fit_on=str(settings.fit_on),
    )


def _rows(name: str) -> list[dict[str, str]]:
    text = files("emo_mlflow").joinpath(f"data/{name}").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _tokens(loaded: LoadedModel, prompts: Sequence[Prompt], settings: StudySettings) -> dict[str, Tokens]:
    found = {}
    for prompt, tokens in zip(prompts, encode_prompts(loaded, prompts, form_of(settings)), strict=True):
        if not tokens or len(tokens) + settings.sequence_length > loaded.context:
            raise UserError(
                f"the prompt {prompt.text[:40]!r} has {len(tokens)} tokens; with {settings.sequence_length} new ones it does not fit the model's "
                f"context of {loaded.context}: shorten it or sequence_length"
            )
        found[prompt.prompt_id] = tokens
    return found


def _readings(sources: Sources, settings: StudySettings) -> dict[str, Reading]:
    name, rank = parse_direction(settings.direction)
    table = judge(sources.means, sources.labels, sources.reference, ["mean_diff" if rank else name], settings.seed, sources.groups)
    return {
        str(emotion): Reading(rows["accuracy"].to_numpy(np.float32), rows["accuracy_low"].to_numpy(np.float32))
        for emotion, rows in table.groupby("emotion", sort=False)
    }


def _places(inputs: StudyInputs, readings: Mapping[str, Reading], n_layers: int) -> tuple[Place, ...]:
    """Each emotion's place, in the order of the tests; without layers of one's own, one layer serves all."""
    settings, emotions = inputs.settings, inputs.prompts.emotions
    together = Reading(
        np.mean([readings[e].accuracy for e in emotions], axis=0), np.mean([readings[e].low for e in emotions], axis=0)
    )
    auto = choose_layers(together, MOST_DEPTHS if settings.search == "depths" else 1)
    places = {}
    for emotion in emotions:
        layers, why = auto if not settings.layers else ((int(value_of(settings.layers, emotion, "layers")),), "given")
        if wrong := [layer for layer in layers if layer >= n_layers]:
            raise UserError(f"layer {wrong[0]} does not exist: the model has layers 0 to {n_layers - 1}")
        places[emotion] = Place(
            emotion=emotion,
            metric=inputs.labels[emotion],
            layers=layers,
            alpha=value_of(settings.alpha, emotion, "alpha"),
            alpha_unit=settings.alpha_unit,
            accuracy=float(readings[emotion].accuracy[list(layers)].max()),
            chosen=why,
        )
    return tuple(places[name] for name in order_of({name: round(place.accuracy, 3) for name, place in places.items()}))
