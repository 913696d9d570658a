"""An interrupt stays one, whatever the code that it broke off makes of it."""

from __future__ import annotations

import pytest

from emo_mlflow.common.termination import interruptible


def broken_off() -> None:
    """Fails as PyTorch's vmap does: an interrupt in the middle makes its own clean-up raise."""
    try:
        raise KeyboardInterrupt
    finally:
        raise RuntimeError("INTERNAL ASSERT FAILED")


def test_an_error_that_came_of_an_interrupt_is_the_interrupt():
    """A run that SIGTERM stopped ended FAILED, with a traceback and without the line that says how to go on."""
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        broken_off()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="disk"), interruptible():
        try:
            raise ValueError("of another kind")
        except ValueError:
            raise RuntimeError("disk") from None
