"""An alignment's tables from what two models made of the same texts; no model is needed any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from emo_mlflow.alignment.maps import (
    MAPS,
    AlignmentMap,
    Null,
    as_they_are,
    halves,
    held_out_fit,
    permuted_axes,
    subspace_overlaps,
)
from emo_mlflow.directions.readouts import Floats, Mask, auc, auc_with_interval, contrasts, mean_difference
from emo_mlflow.directions.subspaces import principal_axes, random_overlaps
from emo_mlflow.settings.align import AlignSettings
from emo_mlflow.types import Direction, FloatArray

ONE_THREAD = 1024


@dataclass(frozen=True, eq=False)
class States:
    """What one model made of the texts.

    Attributes:
        identity: what vector files say of the model (models.identity.identity).
        means: float32 [n_texts, n_layers, d], of the texts that directions are fitted on.
        norms: float32 [n_layers], typical residual norms.
        fitted, judged: float32 [n_points, n_layers, d]: the points that maps are fitted on, and others that they are judged on.
    """

    name: str
    fingerprint: str
    identity: Mapping[str, str]
    means: FloatArray
    norms: FloatArray
    fitted: FloatArray
    judged: FloatArray

    @property
    def n_layers(self) -> int:
        """Decoder blocks."""
        return self.means.shape[1]


@dataclass(frozen=True, eq=False)
class AlignTables:
    """The tables of a finished alignment.

    Attributes:
        overlap: a row per pair of layers, emotion and k: overlap (after the chosen map), overlap_before (coordinates as they are),
            overlap_procrustes, overlap_ridge, ceiling (between model B's own two halves of the texts), and of the nulls null_mean,
            null_q95, null_p (random subspaces), permuted_mean, permuted_q95, permuted_p (model A's labels shuffled).
        maps: a row per pair of layers and kind of map: r2, r2_median and cosine on held-out words.
        directions: a row per pair of layers and emotion: cosine of A's mapped direction with B's own (before any map; by map),
            ceiling, and the mapped direction's AUC on model B's texts.
        mapped: model A's directions in model B, at each of B's layers from A's layer of the same relative depth.
    """

    overlap: pd.DataFrame
    maps: pd.DataFrame
    directions: pd.DataFrame
    mapped: dict[str, Direction]


class Aligner:
    """The computation, once both models have been run."""

    def __init__(
        self, settings: AlignSettings, labels: Sequence[str], reference: str | None, a: States, b: States
    ) -> None:
        self.settings = settings
        self.labels = list(labels)
        self.reference = reference
        self.a, self.b = a, b
        self.first, self.second = halves(labels, settings.seed)
        self.random = random_overlaps(settings.k_max, b.means.shape[2], settings.n_random, settings.seed)

    def run(self) -> AlignTables:
        """All pairs of relative depths, then the directions to inject."""
        widest = max(model.means.shape[2] for model in (self.a, self.b))
        # In small products threads wait for each other: measured at width 576 on a busy machine, two take five times as long as one.
        with threadpool_limits(1 if widest <= ONE_THREAD else None, user_api="blas"):
            return self._tables()

    def _tables(self) -> AlignTables:
        overlaps: list[dict[str, Any]] = []
        maps: list[dict[str, Any]] = []
        directions: list[dict[str, Any]] = []
        grids = [layer_grid(model.n_layers, self.settings.depths) for model in (self.a, self.b)]
        permuted = {layer: self._permuted(layer) for layer in grids[0]}
        for layer_a in grids[0]:
            for layer_b in grids[1]:
                pair = self._pair(layer_a, layer_b)
                fitted = {kind: self._fit(kind, layer_a, layer_b) for kind in MAPS}
                x, y = (m.judged[:, i].astype(np.float64) for m, i in ((self.a, layer_a), (self.b, layer_b)))
                maps += [{**pair, "map": kind, **held_out_fit(m, x, y)} for kind, m in fitted.items()]
                overlaps += [pair | row for row in self._overlaps(layer_a, layer_b, fitted, permuted[layer_a])]
                directions += [pair | row for row in self._directions(layer_a, layer_b, fitted)]
        return AlignTables(pd.DataFrame(overlaps), pd.DataFrame(maps), pd.DataFrame(directions), self._mapped())

    def _pair(self, layer_a: int, layer_b: int) -> dict[str, Any]:
        after = self.settings.site == "resid_post"
        return {
            "model_a": self.settings.model_a,
            "model_b": self.settings.model_b,
            "layer_a": layer_a,
            "layer_b": layer_b,
            "depth_a": (layer_a + after) / self.a.n_layers,
            "depth_b": (layer_b + after) / self.b.n_layers,
        }

    def _fit(self, kind: str, layer_a: int, layer_b: int) -> AlignmentMap:
        x, y = self.a.fitted[:, layer_a].astype(np.float64), self.b.fitted[:, layer_b].astype(np.float64)
        return MAPS[kind](x, y)

    def _half(self, model: States, layer: int, half: Sequence[int] | np.ndarray) -> Iterator[tuple[str, Floats, Mask]]:
        """Per emotion: its name, the half's texts of it and of the reference at a layer, and which of them are its own."""
        labels = [self.labels[i] for i in half]
        for emotion, used, positive, _ in contrasts(labels, self.reference):
            yield emotion, model.means[np.asarray(half)[used], layer].astype(np.float64), positive

    def _permuted(self, layer: int) -> dict[str, FloatArray]:
        k, n = self.settings.k_max, self.settings.n_permutations
        return {
            emotion: permuted_axes(x, positive, k, n, self.settings.seed)
            for emotion, x, positive in self._half(self.a, layer, self.first)
        }

    def _overlaps(
        self, layer_a: int, layer_b: int, fitted: dict[str, AlignmentMap], permuted: dict[str, FloatArray]
    ) -> Iterator[dict[str, Any]]:
        k = self.settings.k_max
        sides = zip(
            self._half(self.a, layer_a, self.first),
            self._half(self.b, layer_b, self.first),
            self._half(self.b, layer_b, self.second),
            strict=True,
        )
        for (emotion, x, x_own), (_, y1, y1_own), (_, y2, y2_own) in sides:
            axes_a, axes_b = principal_axes(x, x_own, k)[0], principal_axes(y2, y2_own, k)[0]
            after = {f"overlap_{kind}": subspace_overlaps(axes_a @ m.matrix, axes_b) for kind, m in fitted.items()}
            chosen = after[f"overlap_{self.settings.map}"]
            shuffled = permuted[emotion].astype(np.float64) @ fitted[self.settings.map].matrix
            null = Null(self.random, subspace_overlaps(shuffled, axes_b))
            columns = {
                "overlap": chosen,
                "overlap_before": subspace_overlaps(as_they_are(axes_a, axes_b.shape[1]), axes_b),
                **after,
                "ceiling": subspace_overlaps(principal_axes(y1, y1_own, k)[0], axes_b),
                **null.columns(chosen),
            }
            for rank in range(k):
                values = {name: float(column[rank]) for name, column in columns.items()}
                yield {"emotion": emotion, "k": rank + 1, "map": self.settings.map, **values}

    def _directions(self, layer_a: int, layer_b: int, fitted: dict[str, AlignmentMap]) -> Iterator[dict[str, Any]]:
        sides = zip(
            self._half(self.a, layer_a, self.first),
            self._half(self.b, layer_b, self.first),
            self._half(self.b, layer_b, self.second),
            strict=True,
        )
        for (emotion, x, x_own), (_, y1, y1_own), (_, y2, y2_own) in sides:
            source, own = mean_difference(x, x_own), mean_difference(y2, y2_own)
            chosen = source @ fitted[self.settings.map].matrix
            yield {
                "emotion": emotion,
                "map": self.settings.map,
                "cosine_before": cosine(as_they_are(source, len(own)), own),
                **{f"cosine_{kind}": cosine(source @ m.matrix, own) for kind, m in fitted.items()},
                "ceiling": cosine(mean_difference(y1, y1_own), own),
                **auc_with_interval(auc(y2 @ chosen, y2_own), int(y2_own.sum()), int((~y2_own).sum())),
            }

    def _mapped(self) -> dict[str, Direction]:
        """Model A's directions of all texts in model B, with the norms of B's own: they differ from these in where they point only."""
        vectors = {emotion: np.zeros_like(self.b.means[0]) for emotion, _, _, _ in contrasts(self.labels, self.reference)}
        everything = np.arange(len(self.labels))
        for layer_b in range(self.b.n_layers):
            layer_a = matching_layer(layer_b, self.b.n_layers, self.a.n_layers)
            matrix = self._fit(self.settings.map, layer_a, layer_b).matrix
            pairs = zip(self._half(self.a, layer_a, everything), self._half(self.b, layer_b, everything), strict=True)
            for (emotion, x, positive), (_, y, _) in pairs:
                mapped = mean_difference(x, positive) @ matrix
                size = float(np.linalg.norm(mapped))
                if size:
                    vectors[emotion][layer_b] = mapped * (float(np.linalg.norm(mean_difference(y, positive))) / size)
        return {emotion: Direction(emotion, self.settings.site, v) for emotion, v in vectors.items()}


def layer_grid(n_layers: int, depths: int) -> list[int]:
    """At most `depths` layers, spread evenly from the first to the last."""
    return sorted({round(float(x)) for x in np.linspace(0, n_layers - 1, min(depths, n_layers))})


def matching_layer(layer: int, n_layers: int, other: int) -> int:
    """The layer of a model with `other` layers at the same relative depth; the first for the first and the last for the last."""
    return round(layer * (other - 1) / max(n_layers - 1, 1))


def cosine(x: Floats, y: Floats) -> float:
    """Cosine of the angle between two vectors; 0 where one is zero."""
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size else 0.0


def matched(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pairs nearest in relative depth: for each of B's layers, one of A's."""
    gap = (table["depth_a"] - table["depth_b"]).abs()
    return table[gap <= gap.groupby(table["layer_b"]).transform("min") + 1e-9]
