""""""

from __future__ import annotations

from emo_mlflow.types import Scope


def patched_positions(scope: Scope, window: int | None, prompt_length: int, step: int) -> range:
    """S_t, the positions whose residual stream is edited in the forward pass of step t.

    `window`: the last `window` generated tokens, decided anew at every step, and the last prompt token at step 0.
    `generated`: the last prompt token and every generated one. `first`: of these, the generated ones up to number `window`.
    `all`: the whole prompt too. `prompt`: the last `window` tokens of the prompt, or all of it, and none of the generated ones.
    """
    end = prompt_length + step
    if scope == "all":
        return range(0, end)
    if scope == "prompt":
        return range(0 if window is None else max(0, prompt_length - window), prompt_length)
    if scope == "first":
        assert window is not None
        return range(prompt_length - 1, min(end, prompt_length + window))
    if scope == "generated" or step == 0:
        return range(prompt_length - 1, end)
    assert window is not None
    return range(max(prompt_length, end - window), end)


def edits_prompts(scope: Scope) -> bool:
    """Whether more of the prompt is edited than its last token, so that it is run under the edit."""
    return scope in ("all", "prompt")


def n_last_patched(scope: Scope, window: int | None, prompt_length: int, step: int, q: int) -> int:
    """How many of the last q positions before step `step` chooses are edited; of these, they are always the last ones, or none."""
    edited, end = patched_positions(scope, window, prompt_length, step), prompt_length + step
    return max(0, edited.stop - max(edited.start, end - q))


def n_patched(scope: Scope, window: int | None, prompt_length: int, n_steps: int) -> int:
    """Distinct positions that are edited in the forward passes of the first `n_steps` steps."""
    if scope in ("prompt", "first"):
        return len(patched_positions(scope, window, prompt_length, n_steps - 1))
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
