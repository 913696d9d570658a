"""Which designs say "specific" only when it is true, and what they find for how many texts: simulated.

    python bench/study_designs.py [--quick] [--spread 0.4] [--studies N]

The world: scores in [0, 1], most near 0, as sweeps of SmolLM2-135M give them. The log-odds of a score are the prompt's own level (-7, sd 3), the
direction's deviation at that cell (layer and strength; sd `--spread`), and noise of prompt x direction (sd 1.6). A study has three emotions. Under
the null each emotion's direction is a random one. True effects add to the log-odds what makes 0.31 or 0.47 standard deviations (over prompts) of
the difference direction minus draws.

- error: probability that any of three null emotions is called specific.
- power: probability that an emotion is, at 0.31 / 0.47, in its turn. all: that all three are, at 0.47.
- texts: under the null / at 0.47, with the baseline's. A direction's are counted on all prompts, a draw's one draw at a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from emo_mlflow.statistics.corrections import holm
from emo_mlflow.statistics.sequential import LEVEL, Looks
from emo_mlflow.statistics.study_plan import StudyDesign, outcome

EMOTIONS, CELLS, SCREENED = 3, 24, 8
LEVEL_MEAN, LEVEL_SD, NOISE = -7.0, 3.0, 1.6
GAINS = {0.0: 0.0, 0.31: 1.43, 0.47: 2.41}  # on the log-odds, for each effect in standard deviations
# A direction's gain at the 24 cells (8 layers x 3 strengths), as a share of the best; one within a layer of the best has 0.95 of it on average.
PROFILE = np.exp(-0.5 * ((np.arange(8) - 3.7) / 2) ** 2)[:, None] * np.array([0.6, 0.9, 1.0])
CHUNK = 50


@dataclass(frozen=True)
class Found:
    """What a design did: which emotions it called specific in each study, [studies, emotions], and how many texts a study took."""

    called: np.ndarray
    power: float
    texts: float


Design = Callable[[np.random.Generator, int, float, float], Found]


def scores(
    rng: np.random.Generator,
    shape: tuple[int, int],
    n: int,
    gain: float | np.ndarray,
    spread: float,
    deviations: np.ndarray | None = None,
) -> np.ndarray:
    """float32 [worlds, 1 + draws, cells, n], `shape` being (worlds, 1 + draws); the direction comes first.

    Args:
        gain: what the direction adds, [cells].
        deviations: [worlds, 1 + draws, cells] where they are known already: the same directions on fresh prompts.
    """
    gain = np.atleast_1d(np.asarray(gain, np.float32))
    if deviations is None:
        deviations = drawn(rng, shape, len(gain), spread)
    values = rng.standard_normal((*deviations.shape, n), dtype=np.float32) * np.float32(NOISE) + deviations[..., None]
    values += LEVEL_MEAN + LEVEL_SD * rng.standard_normal((shape[0], 1, 1, n), dtype=np.float32)
    values[:, 0] += gain[:, None]
    return special.expit(values, out=values)


def drawn(rng: np.random.Generator, shape: tuple[int, int], cells: int, spread: float) -> np.ndarray:
    return rng.standard_normal((*shape, cells), dtype=np.float32) * np.float32(spread)


def chunks(studies: int) -> Iterator[int]:
    """Studies at a time, so that their scores fit into memory."""
    for first in range(0, studies, CHUNK):
        yield min(CHUNK, studies - first)


def compared(values: np.ndarray, looks: Looks) -> tuple[np.ndarray, np.ndarray]:
    """As `duel`, for many worlds at once: from [worlds, 1 + draws, cells, n], what is beaten and the prompts used, [worlds, draws]."""
    found = None
    for look in looks.prompts:
        best = values[..., :look].mean(axis=3).argmax(axis=2)
        chosen = np.take_along_axis(values[..., :look], best[:, :, None, None], axis=2)[:, :, 0]
        gaps = chosen[:, :1] - chosen[:, 1:]
        mean, error = gaps.mean(axis=2), gaps.std(axis=2, ddof=1) / np.sqrt(look)
        if found is None:
            found, used, decided = mean > 0, np.full(mean.shape, look), np.abs(mean) >= looks.clear * error
            continue
        found, used = np.where(decided, found, mean > 0), np.where(decided, used, look)
        decided |= np.abs(mean) >= looks.clear * error
    return found, used


def exact(design: StudyDesign, cells: int = 1, extra: int = 0) -> Design:
    """A design whose test is exact; with several cells both sides take their best. `extra`: texts that it needs besides."""

    def run(rng: np.random.Generator, studies: int, gain: float, spread: float) -> Found:
        limit = design.most_draws(EMOTIONS)
        # Four depths: the best, and others that carry less.
        share = PROFILE.ravel() if cells == CELLS else PROFILE[2:6, 2] if cells > 1 else np.ones(1)
        beaten, used = [], []
        for part in chunks(studies):
            values = scores(rng, (part * EMOTIONS, 1 + limit), design.looks.prompts[-1], gain * share, spread)
            won, prompts = compared(values, design.looks)
            beaten.append(won.reshape(part, EMOTIONS, limit))
            used.append(prompts.reshape(part, EMOTIONS, limit))
        return summed(design, np.concatenate(beaten), np.concatenate(used), extra)

    return run


def summed(design: StudyDesign, beaten: np.ndarray, used: np.ndarray, extra: float = 0) -> Found:
    found, texts = [], []
    for study in range(len(beaten)):
        one = outcome(design, beaten[study : study + 1], used[study : study + 1])
        found.append(one.found)
        texts.append(one.texts)
    called = np.array(found) > 0
    power = beaten.all(axis=2).mean() if design.procedure == "fixed" else called.mean()
    return Found(called, float(power), float(np.mean(texts)) + extra)


def fitted_t(draws: int, n: int) -> Design:
    """The direction against a t distribution fitted to the draws' means, Holm."""

    def run(rng: np.random.Generator, studies: int, gain: float, spread: float) -> Found:
        p = []
        for part in chunks(studies):
            means = scores(rng, (part * EMOTIONS, 1 + draws), n, gain, spread).mean(axis=3)[:, :, 0]
            others = means[:, 1:]
            t = (means[:, 0] - others.mean(axis=1)) / (others.std(axis=1, ddof=1) * np.sqrt(1 + 1 / draws))
            p.append(stats.t.sf(t, draws - 1).reshape(part, EMOTIONS))
        called = np.array([holm(study) <= LEVEL for study in np.concatenate(p)])
        return Found(called, called.mean(), n * (1 + EMOTIONS * (1 + draws)))

    return run


def screened(design: StudyDesign, draws_too: bool) -> Design:
    """The best of 24 cells on few prompts, then the test there on fresh ones; the draws choose their own cell, or get the direction's."""

    def run(rng: np.random.Generator, studies: int, gain: float, spread: float) -> Found:
        limit, n = design.most_draws(EMOTIONS), design.looks.prompts[-1]
        beaten = []
        for part in chunks(studies):
            shape = (part * EMOTIONS, 1 + limit)
            deviations = drawn(rng, shape, CELLS, spread)
            searching = slice(None) if draws_too else slice(1)
            few = scores(rng, shape, SCREENED, gain * PROFILE.ravel(), spread, deviations[:, searching])
            best = np.broadcast_to(few.mean(axis=3).argmax(axis=2), shape)
            there = np.take_along_axis(deviations, best[..., None], axis=2)
            there[:, 0, 0] += gain * PROFILE.ravel()[best[:, 0]]
            won, _ = compared(scores(rng, shape, n, 0.0, spread, there), design.looks)
            beaten.append(won.reshape(part, EMOTIONS, limit))
        joined = np.concatenate(beaten)
        used = np.full(joined.shape, n + (SCREENED * CELLS if draws_too else 0))
        return summed(design, joined, used, SCREENED * (1 + EMOTIONS * CELLS))

    return run


def sparse(design: StudyDesign, prompts: int, matched: bool) -> Design:
    """Each draw on a random part of the prompts, against the direction on all of them, or on the same part (matched)."""

    def run(rng: np.random.Generator, studies: int, gain: float, spread: float) -> Found:
        limit, n = design.most_draws(EMOTIONS), design.looks.prompts[-1]
        beaten = []
        for part in chunks(studies):
            values = scores(rng, (part * EMOTIONS, 1 + limit), n, gain, spread)[:, :, 0]
            base = scores(rng, (part * EMOTIONS, 1), n, 0.0, 0.0)[:, :, 0]
            keep = rng.random((part * EMOTIONS, limit, n)).argsort(axis=2) < prompts
            own = values[:, :1] - base
            ours = (own * keep).sum(axis=2) / prompts if matched else own.mean(axis=2)
            theirs = ((values[:, 1:] - base) * keep).sum(axis=2) / prompts
            beaten.append((ours > theirs).reshape(part, EMOTIONS, limit))
        joined = np.concatenate(beaten)
        return summed(design, joined, np.full(joined.shape, prompts))

    return run


def opposed(design: StudyDesign) -> Design:
    """Draws in pairs of opposite directions, with the direction's own opposite: 20 that are exchangeable under the null."""

    def run(rng: np.random.Generator, studies: int, gain: float, spread: float) -> Found:
        n, limit = design.looks.prompts[-1], design.most_draws(EMOTIONS)
        beaten = []
        for part in chunks(studies):
            shape = (part * EMOTIONS, 1 + limit)
            halves = drawn(rng, (shape[0], shape[1] // 2), 1, spread)
            halves[:, 0] += gain
            both = np.stack([halves, -halves], axis=2).reshape(*shape, 1)
            won, _ = compared(scores(rng, shape, n, 0.0, spread, both), design.looks)
            beaten.append(won.reshape(part, EMOTIONS, limit))
        joined = np.concatenate(beaten)
        return summed(design, joined, np.full(joined.shape, n))

    return run


def designs() -> dict[str, Design]:
    """The rows of the table. `alone`: each emotion has random directions of its own."""

    def alone(*prompts: int, procedure: str = "fixed", clear: float = 1.5) -> StudyDesign:
        return StudyDesign(Looks(prompts, clear), procedure, shared=False)

    def shared(*prompts: int, procedure: str = "fixed", clear: float = 1.5) -> StudyDesign:
        return StudyDesign(Looks(prompts, clear), procedure)

    four, many = (
        StudyDesign(Looks((n,)), p, depths, shared=False) for n, p, depths in ((15, "fixed", 4), (8, "holm", CELLS))
    )
    return {
        "t fitted to 12 draws, n = 30, Holm": fitted_t(12, 30),
        "t fitted to 50 draws, n = 30, Holm": fitted_t(50, 30),
        "screen 24 cells, confirm on fresh, n = 30, R = 19": screened(alone(30), False),
        "screen 24 cells, confirm on fresh, n = 60, R = 59 Holm": screened(alone(60, procedure="holm"), False),
        "the draws pass the same screen, n = 30, R = 19": screened(alone(30), True),
        "best of 24 cells for all, n = 8, R = 59 Holm": exact(many, CELLS),
        "best of 4 depths for all, n = 15, R = 19": exact(four, 4),
        "one cell, n = 30, R = 19": exact(alone(30)),
        "one cell, n = 90, R = 19": exact(alone(90)),
        "one cell, n = 30, R = 59 Holm": exact(alone(30, procedure="holm")),
        "n = 90, draws on 30 of them, R = 19 (approximate)": sparse(alone(90), 30, False),
        "n = 90, both on the same 30 of them, R = 19": sparse(alone(90), 30, True),
        "opposite pairs, n = 30, R = 19": opposed(alone(30)),
        "looks 15, 30, 90 at t = 1.5": exact(alone(15, 30, 90)),
        "looks 15, 30, 90 at t = 2": exact(alone(15, 30, 90, clear=2.0)),
        "looks 10, 20, 40, 90 at t = 1.5": exact(alone(10, 20, 40, 90)),
        "looks 20, 60, 180 at t = 1.5": exact(alone(20, 60, 180)),
        "shared, n = 30": exact(shared(30)),
        "shared, n = 90": exact(shared(90)),
        "shared, looks 15, 30, 90 at t = 1.5": exact(shared(15, 30, 90)),
        "shared, looks 20, 60, 180 at t = 1.5": exact(shared(20, 60, 180)),
        "shared, n = 30, R = 59 Holm": exact(shared(30, procedure="holm")),
        "shared, looks 15, 30, 90 at t = 1.5, R = 59 Holm": exact(shared(15, 30, 90, procedure="holm")),
    }


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 studies a row rather than 4,000")
    parser.add_argument("--studies", type=int, help="studies a row")
    parser.add_argument("--spread", type=float, default=0.4, help="of random directions, on the log-odds")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    given = parser.parse_args()
    studies = given.studies or (300 if given.quick else 4000)
    start = time.perf_counter()
    print(
        f"{studies:,} studies a row; standard error of an error of 0.05: {np.sqrt(0.05 * 0.95 / studies):.4f}; spread {given.spread}\n"
    )
    print("| design | error | power | all | texts |\n|---|---|---|---|---|")
    print("| the first study's grid, 50 draws, Holm over 72: p >= 1/51 | 0 | 0 / 0 | 0 | 826,425 |")
    for name, design in designs().items():
        if given.only not in name:
            continue
        null, small, large = (
            design(np.random.default_rng([13, place]), studies, gain, given.spread)
            for place, gain in enumerate(GAINS.values())
        )
        error, everything = null.called.any(axis=1).mean(), large.called.all(axis=1).mean()
        print(
            f"| {name} | {error:.3f} | {small.power:.2f} / {large.power:.2f} | {everything:.2f} "
            f"| {null.texts:,.0f} to {large.texts:,.0f} |",
            flush=True,
        )
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
