"""A sweep over directions: fitted or read from a file, at every layer and strength that was asked for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from emo_mlflow.directions.activations import text_means
from emo_mlflow.directions.files import check_directions, load_directions, norms_from_metadata
from emo_mlflow.directions.fitting import fit_directions
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel
from emo_mlflow.prompts.selection import PromptSet
from emo_mlflow.settings.combinations import Weighted, bands_of, combinations
from emo_mlflow.settings.scopes import scope_and_windows
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.sweeping.budgets import find_doses
from emo_mlflow.sweeping.swept import SweptDirections
from emo_mlflow.types import Condition, Edit, Fit, FitTexts

MOST_CONDITIONS = 1_000_000  # a gigabyte of them


def over_directions(
    prompts: PromptSet, config: SweepConfig, loaded: LoadedModel, stack: BlockStack, texts: FitTexts, file: Path | None
) -> tuple[SweptDirections, tuple[Condition, ...]]:
    """The directions of a sweep and its conditions.

    Args:
        texts: those that directions are fitted on.
        file: where directions are taken from, instead of being fitted.

    Raises:
        UserError: for directions of another model, more conditions than can be listed, or a budget of damage that cannot be met.
    """
    if file is None:
        fit = fit_directions(
            stack, prompts.fit, texts, config.site, prompts.reference, config.direction, fingerprint=loaded.fingerprint, groups=prompts.groups
        )
    else:
        fit = _read(file, config, loaded, stack, texts)
    conditions = make_conditions(config)
    doses = find_doses(conditions, fit, config, loaded, stack) if config.alpha_unit == "kl" else {}
    return SweptDirections(fit, doses), conditions


def make_conditions(config: SweepConfig) -> tuple[Condition, ...]:
    """The baseline, then each emotion's conditions, each followed by its random controls.

    Raises:
        UserError: for more than can be listed.
    """
    scope, windows = scope_and_windows(config.scope, config.patch_window)
    bands = bands_of(config.bands) if config.bands else {layer: (layer,) for layer in config.layers}
    injected: dict[str, Weighted] = {name: ((name, 1.0),) for name in config.emotions} | combinations(config.combine, config.emotions)
    settings = len(injected) * len(windows) * len(config.alphas) * len(config.layers)
    if (count := 1 + settings * (1 + config.num_random)) > MOST_CONDITIONS:
        raise UserError(f"{count} conditions are more than a sweep holds ({MOST_CONDITIONS}): take fewer layers, alphas or num_random")
    found = [Condition("baseline")]
    for emotion, window, alpha, layer in itertools.product(injected, windows, config.alphas, config.layers):
        edits = [Edit(name, each, weight) for each in bands[layer] for name, weight in injected[emotion]]
        condition = Condition(
            kind="emotion",
            emotion=emotion,
            layer=layer,
            alpha=alpha,
            scope=scope,
            patch_window=window,
            site=config.site,
            operation=config.operation,
            alpha_unit=config.alpha_unit,
            alpha_schedule=config.alpha_schedule,
            edits=";".join(map(str, edits)) if len(edits) > 1 else "",
        )
        found.append(condition)
        found += [replace(condition, kind="random", draw=draw, seed=config.seed) for draw in range(config.num_random)]
    return tuple(found)


def _read(file: Path, config: SweepConfig, loaded: LoadedModel, stack: BlockStack, texts: FitTexts) -> Fit:
    """A file's directions, and the residual norms at their site, which are measured where the file has none."""
    directions, metadata = load_directions(file)
    shape = (loaded.n_layers, loaded.d_model)
    check_directions(
        directions, metadata, emotions=config.emotions, site=config.site, shape=shape, fingerprint=loaded.fingerprint
    )
    norms = norms_from_metadata(metadata, loaded.n_layers)
    if norms is None:
        norms = text_means(stack, texts, config.site, fingerprint=loaded.fingerprint)[1].mean(axis=0)
    return Fit({name: directions[name] for name in config.emotions}, norms)
