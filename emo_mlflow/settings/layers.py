"""A choice of layers, such as `all/6` or `0-11,20`, for a model of known depth."""

from __future__ import annotations

from emo_mlflow.errors import UserError
from emo_mlflow.settings.combinations import bands_of
from emo_mlflow.settings.parsing import layers


def resolve_layers(choice: str, n_layers: int) -> tuple[int, ...]:
    """The layers that a choice such as `all/6` or `0-11,20` names, in order; of bands such as `8+9+10`, the first of each.

    Raises:
        UserError: if it is no such choice, or the model does not have one of them.
    """
    try:
        parts = layers(choice).split(",")
    except UserError as error:
        raise UserError(f"layers={choice!r} {error}") from None
    if bands := bands_of(",".join(parts), n_layers):
        return tuple(bands)
    chosen: set[int] = set()
    for part in parts:
        span, _, stride = part.partition("/")
        first, _, last = (f"0-{n_layers - 1}" if span == "all" else span).partition("-")
        chosen.update(range(int(first), int(last or first) + 1, int(stride or 1)))
    if not chosen:
        raise UserError(f"layers={choice!r} names no layer: give the smaller number first, as in 0-11")
    if max(chosen) >= n_layers:
        raise UserError(f"layer {max(chosen)} does not exist: the model has layers 0 to {n_layers - 1}")
    return tuple(sorted(chosen))
