"""Several edits in one condition, as a person writes them: bands of layers, and combinations of emotions' directions."""

from __future__ import annotations

from collections.abc import Sequence

from emo_mlflow.common.names import same_name
from emo_mlflow.errors import UserError
from emo_mlflow.settings.parsing import items, number

Weighted = tuple[tuple[str, float], ...]  # emotions with what alpha is multiplied by


LEAST, MOST = 1e-6, 1e6  # of a share, in size: single precision has both, times any alpha that means something


def combine(text: str) -> str:
    """Reads combinations such as `gratitude+apology:-0.5`, separated by commas; an empty text is none."""
    for item in items(text) if text else ():
        _combination(item)
    return text.replace(" +", "+").replace("+ ", "+")


def _combination(text: str) -> Weighted:
    parts = [part.partition(":") for part in text.split("+")]
    names = [name.strip() for name, _, _ in parts]
    weights = [number(weight) if colon else 1.0 for _, colon, weight in parts]
    if len(parts) < 2 or not all(names) or not all(weights) or len(set(map(same_name, names))) < len(names):
        raise UserError("is no combination: give two or more different emotions, such as gratitude+apology:-0.5")
    if odd := [weight for weight in weights if not LEAST <= abs(weight) <= MOST]:
        raise UserError(f"has the share {odd[0]:g}: give shares of {LEAST:g} to {MOST:g} in size")
    return tuple(zip(names, weights, strict=True))


def combinations(text: str, emotions: Sequence[str]) -> dict[str, Weighted]:
    """The combinations by a name of their own, with emotions as the sweep spells them.

    Raises:
        UserError: for an emotion that the sweep does not have.
    """
    spelled = {same_name(name): name for name in emotions}
    found: dict[str, Weighted] = {}
    for item in items(text) if text else ():
        pairs = _combination(item)
        if unknown := [name for name, _ in pairs if same_name(name) not in spelled]:
            raise UserError(f"combine={item!r} names {', '.join(unknown)}, which this sweep does not have: it has {', '.join(emotions)}")
        own = tuple((spelled[same_name(name)], weight) for name, weight in pairs)
        found[" and ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in own)] = own
    return found


def bands_of(choice: str, n_layers: int | None = None) -> dict[int, tuple[int, ...]]:
    """The bands of a choice such as `8+9+10,14+15`, each by its first layer; none where the choice is of single layers.

    Args:
        n_layers: of the model; None where its layers were checked before.

    Raises:
        UserError: for bands beside single layers, two that begin at one layer, or a layer that the model does not have.
    """
    parts = choice.split(",")
    if not any("+" in part for part in parts):
        return {}
    if single := [part for part in parts if "+" not in part]:
        raise UserError(f"layers={choice!r} has bands and {single[0]}: give single layers in a sweep of their own, since tables are by layer")
    if twice := [part for part in parts if len({int(layer) for layer in part.split("+")}) < len(part.split("+"))]:
        raise UserError(f"layers={choice!r} names a layer twice in {twice[0]}: name each once")
    bands = [tuple(sorted({int(layer) for layer in part.split("+")})) for part in parts]
    if len({band[0] for band in bands}) < len(bands):
        raise UserError(f"layers={choice!r} has two bands that begin at one layer: give one of them in a sweep of its own, since tables are by layer")
    if n_layers is not None and (largest := max(map(max, bands))) >= n_layers:
        raise UserError(f"layer {largest} does not exist: the model has layers 0 to {n_layers - 1}")
    return {band[0]: band for band in sorted(bands)}


def bands_text(bands: dict[int, tuple[int, ...]]) -> str:
    """Bands as a person writes them; empty for none."""
    return ",".join("+".join(map(str, band)) for band in bands.values())
