"""How alpha changes over the tokens that are generated."""

from __future__ import annotations

from emo_mlflow.errors import UserError
from emo_mlflow.types import FloatArray

DEFAULT_HALF_LIFE = 10.0


def schedule_factors(schedule: str, n_steps: int) -> FloatArray:
    """What alpha is multiplied by at steps 0..n_steps-1, float32 [n_steps].

    `constant`: 1. `linear`: falls from 1 at the first step to 0 just after the last. `exponential` or `exponential:H`: halves every
    H steps (10 if not given). A list such as `1,0.5,0.25`: these factors, the last one kept on.

    Raises:
        UserError: if the text is none of these.
    """
    import numpy as np  # not above: `emo-mlflow --help` does not wait for it

    steps = np.arange(n_steps, dtype=np.float64)
    name, _, argument = schedule.partition(":")
    problem = UserError(
        f"alpha_schedule {schedule!r} is not known: use constant, linear, exponential, exponential:HALF_LIFE or a list of factors such as 1,0.5,0.25"
    )
    try:
        numbers = [float(item) for item in (argument or name).split(",")] if argument or name[:1] in "+-.0123456789" else []
    except ValueError:
        raise problem from None
    if not all(np.isfinite(numbers)):
        raise problem
    if schedule == "constant":
        return np.ones(n_steps, np.float32)
    if schedule == "linear":
        return (1 - steps / max(n_steps, 1)).astype(np.float32)
    if name == "exponential" and (not argument or (len(numbers) == 1 and numbers[0] > 0)):
        return (0.5 ** (steps / (numbers[0] if argument else DEFAULT_HALF_LIFE))).astype(np.float32)
    if numbers and not argument:
        return np.array([numbers[min(i, len(numbers) - 1)] for i in range(n_steps)], np.float32)
    raise problem
