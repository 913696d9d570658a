"""Noise that is a function of its seed, step and token."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import gumbel_r, kstest

from emo_mlflow.steering.sampling import gumbel_noise

MASK = 2**64 - 1


def splitmix(x: int) -> int:
    """The published mixing function, in Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_noise_is_the_published_generator():
    """Guards: arithmetic that differs between signed and unsigned numbers, and so between devices."""
    golden = 0x9E3779B97F4A7C15
    for seed in (0, 1, 2**63 - 1):
        for step in (0, 7):
            stream = splitmix((splitmix(seed) + (step * (golden - 2**64)) % 2**63) & MASK)
            expected = [
                -math.log(-math.log1p(-((splitmix((stream + i * golden) & MASK) >> 24) + 0.5) / 2**40))
                for i in range(1, 51)
            ]
            assert np.allclose(gumbel_noise(torch.tensor([seed]), step, 50)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_noise_is_gumbel_and_independent_between_seeds_steps_and_tokens():
    """Kolmogorov-Smirnov over 200,000 draws, and correlations of neighbours within four standard errors."""
    n = 50_000
    noise = torch.stack([gumbel_noise(torch.tensor([3, 4]), step, n) for step in (0, 1)]).reshape(4, n).double().numpy()
    assert kstest(noise.ravel(), gumbel_r.cdf).pvalue > 1e-3
    pairs = [(noise[i], noise[j]) for i in range(4) for j in range(i)] + [(row[:-1], row[1:]) for row in noise]
    for left, right in pairs:
        assert abs(np.corrcoef(left, right)[0, 1]) < 4 / math.sqrt(n)


def test_noise_does_not_depend_on_the_other_seeds():
    """Guards: a generator whose draws depend on the batch."""
    together = gumbel_noise(torch.tensor([5, 6, 7]), 2, 100)
    assert torch.equal(together[1], gumbel_noise(torch.tensor([6]), 2, 100)[0])
