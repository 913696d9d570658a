"""How many random directions of a study should be written together: what packs of growing size waste, and what they save.

    python bench/study_packs.py [--studies 4000] [--repetitions 3]

A test stops at the first random direction that its own does not beat, so a direction that was written with it and comes later is wasted. One at a
time wastes none, but the engine is slow with few rows. The engine's speed is measured (the embedded SmolLM2-135M, processor time of one thread,
packs of 8 to 384 rows), and the tests are simulated: three emotions by three kinds of random directions, each test with directions of its own,
10 prompts a direction. Under the null the r-th direction stops a test with probability 1 / (r (r + 1)); or no test is stopped before 59.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
from engine import embedded_model

TESTS, LIMIT, PROMPTS, TOKENS = 9, 59, 10, 20
CONDITIONS = (1, 2, 4, 8, 16, 32, 48)
Seconds = Callable[[float], float]


def growing(factor: int, first: int = 1) -> Iterator[int]:
    """How many directions a test has met after each round: first, then factor times as many more, and so on."""
    total, pack = 0, first
    while total < LIMIT:
        total = min(total + pack, LIMIT)
        pack *= factor
        yield total


def seconds_of_packs(repetitions: int) -> Seconds:
    """Rows to seconds for their 20 tokens, from medians at a few sizes; straight between them and on."""
    ours = embedded_model(CONDITIONS[-1])
    ours.run("generated", 1, likelihoods=False)
    rows, seconds = [0.0], [0.0]
    for count in CONDITIONS:
        speed = float(np.median([ours.run("generated", count, likelihoods=False).speed for _ in range(repetitions)]))
        rows.append((count + 1) * 8.0)  # with a baseline for each of the 8 prompts
        seconds.append(rows[-1] * TOKENS / speed)
        print(f"{rows[-1]:.0f} rows: {speed:.0f} tokens/s", flush=True)
    return lambda n: float(np.interp(n, rows, seconds)) if n <= rows[-1] else n * seconds[-1] / rows[-1]


def stops(rng: np.random.Generator, studies: int, null: bool) -> np.ndarray:
    """The number of the direction that ends each test, [studies, tests]; LIMIT + 1 if none does."""
    if not null:
        return np.full((1, TESTS), LIMIT + 1)
    return np.minimum(np.floor(1 / rng.uniform(size=(studies, TESTS))).astype(int), LIMIT + 1)


def cost(plan: list[int], ends: np.ndarray, seconds: Seconds) -> tuple[float, float, float]:
    """Means over studies: directions that were written, those that counted, and seconds."""
    written = used = spent = 0.0
    for study in ends:
        before = 0
        for total in plan:
            open_tests = int((study > before).sum())
            if not open_tests:
                break
            written += open_tests * (total - before)
            spent += seconds(open_tests * (total - before) * PROMPTS)
            before = total
        used += np.minimum(study, LIMIT).sum()
    return written / len(ends), used / len(ends), spent / len(ends)


def main() -> None:
    """Prints the speeds and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--repetitions", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seconds = seconds_of_packs(asked.repetitions)
    rng = np.random.default_rng(0)
    worlds = {"null": stops(rng, asked.studies, null=True), "all specific": stops(rng, 1, null=False)}
    plans = {"one at a time": list(range(1, LIMIT + 1)), "1, 2, 4, 8, ...": list(growing(2)), "1, 3, 9, ...": list(growing(3))}
    plans |= {"3, 6, 12, ...": list(growing(2, 3)), "all 59": [LIMIT]}
    print("\n| packs | null: written, of them wasted | seconds | all specific: seconds |\n|---|---|---|---|")
    for name, plan in plans.items():
        written, used, spent = cost(plan, worlds["null"], seconds)
        print(f"| {name} | {written:.0f}, {1 - used / written:.0%} | {spent:.1f} | {cost(plan, worlds['all specific'], seconds)[2]:.0f} |")


if __name__ == "__main__":
    main()
