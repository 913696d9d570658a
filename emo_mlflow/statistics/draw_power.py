"""Power and cost of the exact test against random directions, before any data.

All effects are in standard deviations (over prompts) of the difference between the direction and the draws' mean:

- d: the direction's true effect, beyond the mean random direction.
- spread (t): how far the true effects of random directions lie apart.
- noise (k): a random direction's own noise per prompt; the direction's is 1. What all share (a prompt's own level) cancels.

Given the direction's noise z / sqrt(n), a draw stays below with probability F(z) = Phi((d + z / sqrt(n)) / sqrt(t^2 + k^2 / n)). The draws are
independent, so all r stay below with the integral over z of phi(z) F(z)^r. More prompts help little once t is large: the limit is Phi(d / t)^r.
A maximum over q depths, of which one carries the effect, has at least the power of a single depth with q times as many draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from emo_mlflow.statistics.moments import Floats

TARGET = 0.8
LARGEST_N = 2**20
LARGEST_D = 100.0
_Z = np.linspace(-9.0, 9.0, 3601)
_WEIGHTS = stats.norm.pdf(_Z) / stats.norm.pdf(_Z).sum()


@dataclass(frozen=True)
class Spread:
    """How random directions vary, as above.

    Attributes:
        spread: t, between the true effects of random directions.
        noise: k, of a random direction's score at one prompt.
    """

    spread: float
    noise: float


# Between the two sets of figures that sweeps of SmolLM2-135M gave: a spread of 0.05 to 0.12, a noise of 0.3 to 0.35.
TYPICAL = Spread(spread=0.12, noise=0.35)


def unreached(d: float | None, n: int, draws: int, world: Spread) -> Floats:
    """Probability that none of the first r draws reaches the direction, for r = 0..draws: [draws + 1], from 1 downwards.

    Args:
        d: the true effect; None for a direction that is a random one itself, which gives 1 / (r + 1).
        n: prompts.
    """
    counts = np.arange(draws + 1)
    if d is None:
        return 1 / (counts + 1)
    below = stats.norm.cdf((d + _Z / np.sqrt(n)) / np.hypot(world.spread, world.noise / np.sqrt(n)))
    return (_WEIGHTS[:, None] * below[:, None] ** counts).sum(axis=0)


def draw_power(d: float, n: int, draws: int, world: Spread = TYPICAL) -> float:
    """Probability that a true effect of d beats all `draws` random directions on n prompts."""
    return float(unreached(d, n, draws, world)[-1])


def expected_draws(d: float | None, n: int, draws: int, world: Spread = TYPICAL) -> float:
    """Random directions that a test of at most `draws` needs until it stops, on average."""
    return float(unreached(d, n, draws, world)[:-1].sum())


def prompts_needed(d: float, draws: int, target: float = TARGET, world: Spread = TYPICAL) -> int:
    """The fewest prompts with which a true effect of d beats all `draws` random directions with probability `target`.

    Raises:
        ValueError: if no number of prompts does, because random directions lie too far apart.
    """
    most = draw_power(d, LARGEST_N, draws, world)
    if most < target:
        raise ValueError(
            f"no number of prompts gives d = {d} power {target}: draws of spread {world.spread} allow {most:.2f}"
        )
    low, high = 0, LARGEST_N
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if draw_power(d, middle, draws, world) >= target else (middle, high)
    return high


def smallest_effect(n: int, draws: int, target: float = TARGET, world: Spread = TYPICAL) -> float:
    """The smallest true effect that n prompts show against `draws` random directions with probability `target`, to 1e-6."""
    low, high = 0.0, LARGEST_D
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if draw_power(middle, n, draws, world) >= target else (middle, high)
    return high


def measured_spread(own: Floats, draws: npt.ArrayLike) -> tuple[float, Spread]:
    """What a finished test says of d, spread and noise, to plan the next one. Not a test.

    Args:
        own: scores of the direction [n_prompts].
        draws: scores of the random directions on the same prompts [n_draws, n_prompts]; without NaN.

    Returns:
        d and the spread, by the mean squares of draws crossed with prompts; a negative variance counts as 0.

    Raises:
        ValueError: with fewer than two draws or prompts, or if the direction differs from the draws by a constant.
    """
    scores = np.asarray(draws, float)
    n_draws, n = scores.shape
    if n_draws < 2 or n < 2:
        raise ValueError(f"{n_draws} draws on {n} prompts have no spread: two of each are needed")
    difference = np.asarray(own, float) - scores.mean(axis=0)
    residual = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    noise = (residual**2).sum() / ((n_draws - 1) * (n - 1))
    # The mean draw has noise of its own, which is not the direction's.
    unit = difference.var(ddof=1) - noise / n_draws
    if not unit > 0:
        raise ValueError("direction and draws differ by the same amount at every prompt: there is no unit for d")
    between = max(scores.mean(axis=1).var(ddof=1) - noise / n, 0.0)
    world = Spread(float(np.sqrt(between / unit)), float(np.sqrt(noise / unit)))
    return float(difference.mean() / np.sqrt(unit)), world
