"""`emo-mlflow steer` and `emo_mlflow.steer`: one condition, tried on a prompt, before any sweep or from one that is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from emo_mlflow.common.machine import pick_device
from emo_mlflow.common.names import same_name
from emo_mlflow.directions.activations import text_means
from emo_mlflow.directions.files import check_directions, load_directions, norms_from_metadata
from emo_mlflow.directions.fitting import choose_direction
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.chat import resolved_form
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import resolve
from emo_mlflow.models.tokens import encode_fit_texts
from emo_mlflow.prompts.columns import Layout
from emo_mlflow.prompts.selection import PromptSet, load_prompts
from emo_mlflow.serving.side_by_side import SideBySide, Steering
from emo_mlflow.serving.steered_model import GenerationDefaults, Settings, SteeredModel
from emo_mlflow.settings.declared import as_texts, read, table_of
from emo_mlflow.settings.scopes import scope_and_windows
from emo_mlflow.settings.steer import BESIDE_A_SWEEP, OF_A_CALL, SteerSettings
from emo_mlflow.settings.templates import check_form, form_of
from emo_mlflow.sweeping.budgets import check_budgets
from emo_mlflow.types import Condition, Direction, FloatArray, Say

FIRST_WINDOW = 3


def steer(
    emotion: str | None = None, layer: int | None = None, alpha: float | None = None, *, tracking_uri: str | None = None, **settings: Any
) -> Steering:
    """A model with one direction in hand: call it with a prompt, and it gives the text beside the one without the direction.

        steered = emo_mlflow.steer("gratitude", layer=12, alpha=2)
        steered("My brother called")                                # both texts
        for texts in steered.stream("My brother called"):           # both texts so far, after every token
            print(texts.steered)
        steered.table(prompts, alpha=3, temperature=0.8)            # a table of many

    Args:
        emotion: whose direction.
        layer: the block at which it is injected; the middle one if not given.
        alpha: how strongly; 1 if not given.
        tracking_uri: of `run_id`, or of a run in `directions`.
        settings: model, run_id, directions, scope, template, ...: as the options of `emo-mlflow steer`, with their values or as texts.

    Raises:
        UserError: for anything that the caller can mend.
    """
    given = {"emotion": emotion, "layer": layer, "alpha": alpha, **settings}
    return Steering(steered_model(as_texts(given), tracking_uri))


def run_steer(given: Mapping[str, str | None], prompts: Sequence[str], word_by_word: bool, tracking_uri: str | None, say: Say) -> None:
    """Continues prompts with and without a direction, and says both texts.

    Raises:
        UserError: for anything that the user can mend.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError('there is no prompt: give a text to continue, as in emo-mlflow steer "My brother called" --emotion gratitude')
    steering = Steering(steered_model(given, tracking_uri))
    say(f"{steering!r}\n")
    for prompt in prompts:
        texts = _shown(steering, prompt) if word_by_word else steering(prompt)
        say(f"{texts}\n")


def _shown(steering: Steering, prompt: str) -> SideBySide:
    """Writes the steered text as it comes; returns both."""
    shown, texts = "", SideBySide(prompt, "", "", "")
    for texts in steering.stream(prompt):
        print(texts.steered[len(shown) :], end="", flush=True)
        shown = texts.steered
    print("\n")
    return texts


def steered_model(given: Mapping[str, str | None], tracking_uri: str | None) -> SteeredModel:
    """The model under the condition that was asked for.

    Raises:
        UserError: for anything that the user can mend.
    """
    settings = SteerSettings(**read(table_of(SteerSettings), given))
    if settings.run_id is None:
        return _fitted(settings, tracking_uri)
    if other := [name for name, text in given.items() if text and name not in BESIDE_A_SWEEP]:
        raise UserError(f"{other[0]}={given[other[0]]!r} beside run_id: the sweep says it; leave it out, or leave out run_id")
    options = {name: getattr(settings, name) for name in OF_A_CALL if given.get(name)}
    return _of_sweep(settings, options, tracking_uri)


def _of_sweep(settings: SteerSettings, options: Mapping[str, Any], tracking_uri: str | None) -> SteeredModel:
    """The condition of a sweep that was named, or its best one."""
    from emo_mlflow.serving.condition_choice import Wanted, choose
    from emo_mlflow.serving.log_model import settings_of
    from emo_mlflow.tracking.reading import load_sweep

    sweep = load_sweep(str(settings.run_id), tracking_uri)
    wanted = Wanted(settings.emotion, settings.layer, settings.alpha, patch_window=settings.patch_window)
    if settings.scope is not None:
        scope, windows = scope_and_windows(settings.scope, [settings.patch_window or FIRST_WINDOW])
        wanted = replace(wanted, scope=scope, patch_window=windows[0])
    choice = choose(wanted, sweep.config, int(sweep.facts["n_layers"]), sweep.conditions, sweep.effects)
    found = settings_of(sweep, choice)
    named = {"sequence_length" if name == "max_new_tokens" else name: value for name, value in options.items()}
    found = replace(found, generation=replace(found.generation, **named))
    direction, layer = sweep.directions[str(choice.condition.emotion)], int(str(choice.condition.layer))
    loaded = load(found.model, pick_device(settings.device), getattr(torch, found.generation.dtype))
    if loaded.fingerprint != found.fingerprint:
        raise UserError(f"{found.model.location} holds other weights than the sweep {sweep.run_id} ran on: put those back, or fit directions anew")
    return SteeredModel(found, direction.vectors[layer], None if direction.basis is None else direction.basis[layer], loaded)


def _fitted(settings: SteerSettings, tracking_uri: str | None) -> SteeredModel:
    """A direction fitted on the spot, or taken from a file."""
    check_form(settings)
    check_budgets(settings.alpha_unit, settings.operation)
    device, spec = pick_device(settings.device), resolve(settings.model)
    file = None if settings.directions == "fit" else _fetch(settings.directions, tracking_uri)
    prompts = load_prompts(
        settings.dataset,
        max_samples=1,
        seed=settings.seed,
        layout=Layout.of(settings),
        pairs=settings.pairs,
        personas=settings.personas,
    )
    emotion = _chosen(settings.emotion, tuple(load_directions(file)[0]) if file else prompts.emotions)
    check(spec, device, getattr(torch, settings.dtype))
    form = resolved_form(spec, settings, prompts.fit)
    settings = replace(settings, template=form.template, fit_on=form.fit_on)
    loaded = load(spec, device, getattr(torch, settings.dtype))
    layer = loaded.n_layers // 2 if settings.layer is None else settings.layer
    if layer >= loaded.n_layers:
        raise UserError(f"layer {layer} does not exist: the model has layers 0 to {loaded.n_layers - 1}")
    stack = BlockStack(loaded.model)
    texts = encode_fit_texts(loaded, prompts.fit, form_of(settings))

    def means() -> tuple[FloatArray, FloatArray]:
        return text_means(stack, texts, settings.site, fingerprint=loaded.fingerprint)

    if file is None:
        vector, basis, norm = _fit(settings, prompts, emotion, layer, *means())
    else:
        shape = (loaded.n_layers, loaded.d_model)
        vector, basis, norms = _read(file, settings, emotion, layer, shape, loaded.fingerprint)
        norm = float((means()[1].mean(axis=0) if norms is None else norms)[layer])
    scope, windows = scope_and_windows(settings.scope or "generated", [settings.patch_window or FIRST_WINDOW])
    condition = Condition(
        kind="emotion",
        emotion=emotion,
        layer=layer,
        alpha=1.0 if settings.alpha is None else settings.alpha,
        scope=scope,
        patch_window=windows[0],
        site=settings.site,
        operation=settings.operation,
        alpha_unit=settings.alpha_unit,
        alpha_schedule=settings.alpha_schedule,
    )
    asked = {**asdict(settings), "sequence_length": settings.max_new_tokens}
    generation = GenerationDefaults(**{name: asked[name] for name in GenerationDefaults.__dataclass_fields__})
    return SteeredModel(Settings(loaded.spec, loaded.fingerprint, condition, norm, generation, sweep=""), vector, basis, loaded)


def _fetch(directions: str, tracking_uri: str | None) -> Path:
    if Path(directions).is_file():
        return Path(directions)
    from emo_mlflow.tracking.sweep_run import fetch_directions

    return fetch_directions(directions, tracking_uri)


def _chosen(wanted: str | None, there: Sequence[str]) -> str:
    if wanted is None and len(there) == 1:
        return there[0]
    if found := [name for name in there if wanted and same_name(name) == same_name(wanted)]:
        return found[0]
    problem = "which emotion" if wanted is None else f"there is no emotion {wanted!r}"
    raise UserError(f"{problem}: choose --emotion {', '.join(there)}")


def _fit(
    settings: SteerSettings, prompts: PromptSet, emotion: str, layer: int, means: FloatArray, norms: FloatArray
) -> tuple[FloatArray, FloatArray | None, float]:
    """The direction at one layer, its basis if it is a subspace, and the stream's mean norm there."""
    labels = [prompt.emotion for prompt in prompts.fit]
    found = choose_direction(settings.direction, means[:, [layer]], labels, prompts.reference, settings.site)[emotion]
    return found.vectors[0], None if found.basis is None else found.basis[0], float(norms[:, layer].mean())


def _read(
    file: Path, settings: SteerSettings, emotion: str, layer: int, shape: tuple[int, int], fingerprint: str
) -> tuple[FloatArray, FloatArray | None, FloatArray | None]:
    """A file's direction at one layer, its basis if it is a subspace, and the norms that were measured with it, if it has them."""
    directions, metadata = load_directions(file)
    check_directions(directions, metadata, emotions=[emotion], site=settings.site, shape=shape, fingerprint=fingerprint)
    direction: Direction = directions[emotion]
    basis = None if direction.basis is None else direction.basis[layer]
    return direction.vectors[layer], basis, norms_from_metadata(metadata, shape[0])
