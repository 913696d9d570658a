"""Rows of the engine written on a Ray cluster: packs go to actors, each with a model of its own, and come back as completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from emo_mlflow.cluster.connection import Pools, make_pools
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel, load
from emo_mlflow.models.names import ModelSpec
from emo_mlflow.models.tokens import text_decoder
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.packing import Row
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.types import Completion

RETRIES = 20  # of an actor that dies with its node; what it had not given back is written again


class RowActor:
    """Writes packs on a model that it loads once."""

    def __init__(self, spec: ModelSpec, device: str, dtype: str, fingerprint: str, decoding: Decoding) -> None:
        self._spec = spec
        self._device = torch.device(device)
        self._dtype = dtype
        self._fingerprint = fingerprint
        self._decoding = decoding

    @cached_property
    def _engine(self) -> Engine:
        loaded = load(self._spec, self._device, getattr(torch, self._dtype))
        if loaded.fingerprint != self._fingerprint:
            raise UserError(
                f"model {self._spec.name!r} has other weights on a node of the cluster than where the study was started: "
                "give every node the same files"
            )
        return Engine(BlockStack(loaded.model), self._decoding, text_decoder(loaded), None)

    def write(self, rows: Sequence[Row]) -> list[Completion]:
        """The completions of one pack."""
        return [item for pack in self._engine.generate(rows) for item in pack]


class RowWriter:
    """The actors of a connected cluster.

    Args:
        cut: rows to packs, as the engine of this process cuts them.
    """

    def __init__(
        self, loaded: LoadedModel, device: str, dtype: str, decoding: Decoding, cut: Callable[[Sequence[Row]], list[list[Row]]]
    ) -> None:
        import ray
        from ray.util import ActorPool

        pools: Pools = make_pools([node["Resources"] for node in ray.nodes() if node["Alive"]], device)
        actor = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES, **pools.reserved)(RowActor)
        arguments = (loaded.spec, pools.device, dtype, loaded.fingerprint, decoding)
        self._pool = ActorPool([actor.remote(*arguments) for _ in range(pools.generators)])
        self._n = pools.generators
        self._cut = cut

    def __call__(self, rows: Sequence[Row]) -> Iterator[Sequence[Completion]]:
        """Packs of completions as they come; few rows are divided among the actors too."""
        packs = self._cut(rows)
        if len(packs) < self._n:
            packs = [part for pack in packs for part in (pack[i :: self._n] for i in range(self._n)) if part]

        def send(actor: Any, pack: Sequence[Row]) -> Any:
            return actor.write.remote(pack)

        yield from self._pool.map_unordered(send, packs)
