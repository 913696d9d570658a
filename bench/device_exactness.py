"""Is the engine exact on this device? Packed decoding on it, held to the uncached definition on the CPU, float32, for every family and scope.

    python bench/device_exactness.py --device cuda

The tests do the same on the CPU. This needs torch and transformers, and no MLflow, so a bare machine with a GPU will do.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from packs import EOS, assert_same_or_tied, random_rows, run_packed, stack_of
from tiny_models import FAMILIES

from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.steering.sampling import Decoding

SCOPES = (("window", 1), ("window", 3), ("generated", None), ("all", None))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per family and scope; 1 if a row differs other than by a tie."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=40, help="per family, scope and schedule")
    given = parser.parse_args(argv)
    wrong = 0
    for family in FAMILIES:
        reference = stack_of(family)
        stack = BlockStack(copy.deepcopy(reference.model).to(given.device))
        for scope, window in SCOPES:
            held = 0
            for schedule in ("constant", "linear"):
                for n_least in (0, 12):
                    decoding = Decoding(12, n_least, 0.0, EOS)
                    rows = random_rows(np.random.default_rng(held), given.rows, scope, window, schedule, 12)
                    found = run_packed(stack, rows, decoding)
                    for row in rows:
                        try:
                            assert_same_or_tied(reference, row, found[row.cell.condition_id], decoding)
                            held += 1
                        except AssertionError as error:
                            wrong += 1
                            print(family, scope, str(error)[-200:])
            print(f"{family:10} {scope:10} {window or '':2} {held} rows equal the definition", flush=True)
    print(f"{wrong} rows differ; torch {torch.__version__} on {given.device}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
