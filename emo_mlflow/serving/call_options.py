"""What a call of a steered model may set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emo_mlflow.errors import UserError


@dataclass(frozen=True)
class Options:
    """What a call may set; None keeps what the sweep had.

    Attributes:
        alpha: strength, in the condition's unit; 0 is the base model itself where the operation says so (`zero_is_baseline`).
        max_new_tokens: tokens of a text at most; end-of-sequence is suppressed before the sweep's `min_new_tokens`.
        temperature: 0 for greedy decoding.
        seed: of the sampling noise.
    """

    alpha: float | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> Options:
        """Options from names and numbers.

        Raises:
            UserError: for a name that there is not, or a value that cannot be.
        """
        if unknown := sorted(set(params) - set(cls.__dataclass_fields__)):
            raise UserError(f"unknown parameter {unknown[0]!r}: there are {', '.join(cls.__dataclass_fields__)}")
        options = cls(**params)
        for name in ("alpha", "temperature"):
            value = getattr(options, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"{name}={value} is not a finite number")
        if options.temperature is not None and options.temperature < 0:
            raise UserError(f"temperature={options.temperature:g} is below 0; 0 is greedy decoding")
        if options.max_new_tokens is not None and options.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={options.max_new_tokens} is less than 1")
        return options


AS_RECORDED = Options()  # what a call has that sets nothing
