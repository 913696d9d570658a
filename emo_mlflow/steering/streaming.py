"""Texts as they are written: a few rows, token by token, for a person who is waiting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from queue import Queue
from threading import Event, Thread

from torch import Tensor

from emo_mlflow.errors import UserError
from emo_mlflow.steering.decoding import Decoded, PackDecoder
from emo_mlflow.steering.engine import Engine, attention_kernel
from emo_mlflow.steering.packing import Row
from emo_mlflow.types import Cell

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes whose rest is still to come


def stream(engine: Engine, rows: Sequence[Row]) -> Iterator[Mapping[Cell, str]]:
    """Each row's text so far, after every token; the last is what `engine.generate` gives. Closing the iterator ends the decoding.

    Args:
        rows: of one pack (`packing.pack_key`).

    Raises:
        UserError: for a row whose text breaks off because its logits are not finite.
    """
    stop, steps = Event(), Queue[dict[Cell, list[int]] | list[Decoded] | BaseException]()
    ends = set(engine.decoding.eos_ids)

    def on_step(left: Sequence[Row], tokens: Tensor) -> None:
        steps.put({row.cell: _until(ids, ends) for row, ids in zip(left, tokens.tolist(), strict=True)})

    def decode() -> None:
        try:
            with attention_kernel(engine.stack.device):
                steps.put(PackDecoder(engine.stack, rows, engine.decoding).run(stop, on_step))
        except BaseException as error:  # handed to who waits for the texts
            steps.put(error)

    thread = Thread(target=decode, name="streaming", daemon=True)
    thread.start()
    try:
        found: dict[Cell, list[int]] = {row.cell: [] for row in rows}
        while isinstance(step := steps.get(), dict):
            found |= step
            yield {cell: text.rstrip(HALF_A_CHARACTER) for cell, text in _texts(engine, found).items()}
        if isinstance(step, BaseException):
            raise step
        yield _texts(engine, {item.row.cell: list(item.tokens) for item in step})
        if broken := [item for item in step if item.overflow_step is not None]:
            raise UserError(f"the logits of step {broken[0].overflow_step} were not finite: alpha is too large for this layer")
    finally:
        stop.set()
        thread.join()


def _until(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def _texts(engine: Engine, found: Mapping[Cell, list[int]]) -> dict[Cell, str]:
    return dict(zip(found, engine.decode(list(found.values())), strict=True))


