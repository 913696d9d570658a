"""Directions: fitted on prompts at the site where they are injected, drawn at random as controls, kept in files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emo_mlflow.directions.activations import text_means
from emo_mlflow.directions.readouts import (
    Contrast,
    Floats,
    contrasts,
    judge,
    mean_difference,
    method_named,
    of_contrast,
)
from emo_mlflow.directions.subspaces import check_components, fit_subspaces, principal_axes
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.settings.direction_choice import parse_direction, parse_method
from emo_mlflow.types import Aggregation, Direction, Fit, FitTexts, FloatArray, Prompt, Site


def choose_direction(
    choice: str, means: FloatArray, labels: Sequence[str], reference: str | None, site: Site
) -> dict[str, Direction]:
    """Directions of every emotion at every layer, as `choice` says.

    All but the mean difference itself are scaled to its norm, and turned so that the emotion's texts project higher: methods differ
    in where they point and not in dose. A subspace keeps the mean difference, whose coordinates in it are what is injected.

    Args:
        choice: `mean_diff`, `pc1` (`pc2`, ...), `lda`, `logistic` or `subspace:K`.
        means: float32 [n_texts, n_layers, d_model].

    Raises:
        UserError: for an unknown choice, more components than texts, or an emotion with fewer than two texts.
    """
    name, rank = parse_direction(choice)
    component = rank or parse_method(name)[1]
    check_components(component, labels, reference, means.shape[2])
    bases = fit_subspaces(means, labels, reference, rank).bases if rank else {}
    method = mean_difference if rank else method_named(name)
    found: dict[str, Direction] = {}
    for contrast in contrasts(labels, reference):
        layers = [means[contrast.used, layer].astype(np.float64) for layer in range(means.shape[1])]
        fitted = [(of_contrast(method, name, contrast, x), mean_difference(x, contrast.positive)) for x in layers]
        vectors = np.stack([_like_difference(vector, difference) for vector, difference in fitted])
        found[contrast.emotion] = Direction(contrast.emotion, site, vectors.astype(np.float32), bases.get(contrast.emotion))
    return found


def injected(choice: str, x: Floats, contrast: Contrast) -> Floats:
    """What `add` injects for a direction that is fitted as `choice` says, [d_model]: of a subspace, the mean difference inside it.

    Args:
        x: float64 [n_texts, d_model], of one layer: the rows that the contrast uses.
    """
    name, rank = parse_direction(choice)
    difference = mean_difference(x, contrast.positive)
    if rank:
        axes = principal_axes(*contrast.displacements(x), rank)[0]
        return np.asarray(axes.T @ (axes @ difference))
    return _like_difference(of_contrast(method_named(name), name, contrast, x), difference)


def _like_difference(vector: Floats, difference: Floats) -> Floats:
    norm = float(np.linalg.norm(vector))
    sign = -1.0 if vector @ difference < 0 else 1.0
    return vector * (sign * float(np.linalg.norm(difference)) / norm) if norm else vector


def fit_directions(
    stack: BlockStack,
    prompts: Sequence[Prompt],
    texts: FitTexts,
    site: Site,
    reference: str | None,
    direction: str = "mean_diff",
    aggregation: Aggregation = "mean",
    fingerprint: str | None = None,
    groups: Sequence[int] = (),
) -> Fit:
    """Directions of every emotion among `prompts`, at every layer, and how well they read held-out texts.

    Args:
        texts: of each prompt.
        direction: as in `choose_direction`.
        fingerprint: as in `text_means`.
        groups: as in `readouts.judge`.

    Raises:
        UserError: if a text has no token of its own, or `direction` asks for what the texts cannot give.
    """
    for prompt, ids, first in zip(prompts, texts.tokens, texts.first, strict=True):
        if len(ids) <= max(1, first):
            raise UserError(
                f"the text {prompt.text!r} is too short to fit a direction on: it has no token after the first"
            )
    means, norms = text_means(stack, texts, site, aggregation, fingerprint)
    labels = [prompt.emotion for prompt in prompts]
    name, rank = parse_direction(direction)
    judged = judge(means, labels, reference, ["mean_diff" if rank else name], groups=groups)
    return Fit(
        choose_direction(direction, means, labels, reference, site),
        norms.mean(axis=0),
        {
            str(emotion): rows["accuracy"].to_numpy(np.float32)
            for emotion, rows in judged.groupby("emotion", sort=False)
        },
    )
