""""""

from __future__ import annotations

from emo_mlflow.types import Scope


def patched_positions(scope: Scope, window: int | None, prompt_length: int, step: int) -> range:
    """S_t, the positions whose residual stream is edited in the forward pass of step t.

    `window`: the last `window` generated tokens, decided anew at every step, and the last prompt token at step 0.
    `generated`: the last prompt token and every generated one. `all`: the whole prompt too.
    """
    end = prompt_length + step
    if scope == "all":
        return range(0, end)
    if scope == "generated" or step == 0:
        return range(prompt_length - 1, end)
    assert window is not None
    return range(max(prompt_length, end - window), end)


def n_patched(scope: Scope, window: int | None, prompt_length: int, n_steps: int) -> int:
    """Distinct positions that are edited in the forward passes of the first `n_steps` steps: after the first, one more each."""
    return len(patched_positions(scope, window, prompt_length, 0)) + n_steps - 1


def first_stale_position(
    scope: Scope, window: int | None, prompt_length: int, step: int, constant_alpha: bool
) -> int:
    """The first position that must be run (again) at step t, above the edited layer, given the keys and values of step t-1.

    Only a window goes back on what was computed: the position that leaves it becomes clean, and everything after that one
    attended to it. Where alpha changes from step to step, all that the window holds is edited anew as well.
    """
    last = prompt_length + step - 1
    if step == 0:
        return patched_positions(scope, window, prompt_length, 0).start
    if scope != "window":
        return last
    assert window is not None
    if step > window:
        return prompt_length + step - 1 - window
    return last if constant_alpha else prompt_length
