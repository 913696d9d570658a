"""How fast scoring is on a real sweep's completions, against three padded PyTorch classifiers in arrival order.

    python bench/scorers.py completions.parquet

The classifier has RoBERTa-base's size and random weights, which cost as much as trained ones, and is run three times.
PyTorch scores the first texts only (--baseline-texts), and is taken to go on at that rate. A second run with the same
--folder finds the exports there, and only measures.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from emo_mlflow.evaluators.export import export_scorer
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, RobertaConfig

from emo_mlflow.scoring.cards import TOKENIZER, embedded_folder
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.scoring.onnx import n_threads
from emo_mlflow.scoring.protocol import Scorers

BATCH, CLASSIFIERS = 32, 3  # the first system's


def make_classifier(folder: Path) -> Path:
    """A RoBERTa-base of random weights with the embedded scorer's word pieces as its tokenizer."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=28,
        problem_type="single_label_classification",
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(embedded_folder() / TOKENIZER))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def padded_pytorch(folder: Path) -> Callable[[list[str]], None]:
    """The first system's way: every text through a classifier, in batches in arrival order, padded."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    ).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    @torch.inference_mode()
    def score(texts: list[str]) -> None:
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, max_length=512)
            torch.softmax(model(**batch.convert_to_tensors("pt")).logits, dim=-1).tolist()

    return score


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(name: str, scorers: Scorers, runs: int, texts: list[str], baseline: float) -> None:
    """Prints texts per second through `runs` such scorers, and what part of the gain comes from not repeating texts.

    Gains multiply, so the part is one of their logarithms.
    """
    scorers.score(texts[:64])
    rate = len(texts) / (runs * seconds(lambda: scorers.score(texts)))
    gain, repeats = rate / baseline, len(texts) / len(set(texts))
    print(
        f"{name:34s} {rate:8.0f} texts/s  {gain:6.1f} times PyTorch = {repeats:.2f} by not repeating x "
        f"{gain / repeats:.1f} by the rest: {math.log(repeats) / math.log(gain):.0%} from not repeating"
    )


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completions", type=Path, help="completions.parquet of a sweep")
    parser.add_argument("--baseline-texts", type=int, default=256, help="how many texts PyTorch scores [256]")
    parser.add_argument("--folder", type=Path, help="keep the classifier and its exports here [a temporary folder]")
    arguments = parser.parse_args()
    texts = pd.read_parquet(arguments.completions)["completion"].dropna().tolist()
    print(f"{len(texts)} completions, {len(set(texts))} distinct, {n_threads()} threads")
    torch.set_num_threads(n_threads())
    with tempfile.TemporaryDirectory() as temporary:
        kept = arguments.folder or Path(temporary)
        os.environ["EMO_MLFLOW_CACHE"] = str(kept / "cache")
        folder = make_classifier(kept / "classifier")
        sample = texts[: arguments.baseline_texts]
        int8, float32 = (load_scorers([str(export_scorer(str(folder), p))]) for p in ("int8", "float32"))
        classify = padded_pytorch(folder)
        classify(sample[:BATCH])
        baseline = len(sample) / (CLASSIFIERS * seconds(lambda: classify(sample)))
        print(f"{'PyTorch, 3 x RoBERTa-base, padded':34s} {baseline:8.0f} texts/s")
        report("embedded scorer", load_scorers(["embedded"]), 1, texts, baseline)
        report("3 x RoBERTa-base, ONNX float32", float32, CLASSIFIERS, texts, baseline)
        report("3 x RoBERTa-base, ONNX int8", int8, CLASSIFIERS, texts, baseline)


if __name__ == "__main__":
    main()
