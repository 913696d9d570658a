"""Two models on the same texts: maps between their residual spaces, what these do to emotion subspaces, and directions carried over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from emo_mlflow.alignment.maps import halves
from emo_mlflow.alignment.schemas import OVERLAP
from emo_mlflow.alignment.tables import Aligner, AlignTables, States, matched
from emo_mlflow.commands.task import Task
from emo_mlflow.common.csv_files import write_csv
from emo_mlflow.common.machine import pick_device
from emo_mlflow.common.names import short_name
from emo_mlflow.directions.activations import text_means, token_states, whole
from emo_mlflow.directions.files import save_directions
from emo_mlflow.directions.subspaces import check_components
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.identity import identity
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import ModelSpec, resolve
from emo_mlflow.models.tokens import check_context, encode
from emo_mlflow.prompts.columns import Layout
from emo_mlflow.prompts.conversations import check_texts
from emo_mlflow.prompts.selection import EVERY, PromptSet, fit_hash, load_prompts
from emo_mlflow.report.alignment import write_alignment_report
from emo_mlflow.settings.align import AlignSettings
from emo_mlflow.tracking.lifecycle import run_name
from emo_mlflow.tracking.outcome import Outcome, write_config
from emo_mlflow.tracking.values import Values
from emo_mlflow.types import FloatArray, Prompt, Tokens

# Several letters of Chinese, Japanese, Thai, Lao, Burmese or Khmer in a row, in which several words may be.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff]{4,}")


def run_align(settings: AlignSettings, out: Path) -> Outcome:
    """Aligns two models and writes overlap.parquet, maps and directions tables, the mapped directions, figures and report into `out`.

    Raises:
        UserError: for anything that the user can mend, before a model is loaded where it can be known by then.
    """
    device, specs = pick_device(settings.device), [resolve(name) for name in (settings.model_a, settings.model_b)]
    prompts = load_prompts(
        settings.dataset, emotions=settings.emotions, max_samples=EVERY, seed=settings.seed, layout=Layout.of(settings)
    )
    check_texts((*prompts.fit, *prompts.test), "an alignment reads texts as they are: give a data set of texts")
    settings = replace(settings, emotions=prompts.emotions)
    labels = [prompt.emotion for prompt in prompts.fit]
    for half in halves(labels, settings.seed):
        check_components(settings.k_max, [labels[i] for i in half], prompts.reference, max(1, settings.k_max))
    for spec in specs:
        check(spec, device, getattr(torch, settings.dtype))
    a, b = (collect(spec, settings, prompts, device) for spec in specs)
    if len(a.fitted) != len(b.fitted):
        raise UserError("the two models' tokenizers give different words: use unit=text")
    tables = Aligner(settings, labels, prompts.reference, a, b).run()
    facts = _facts(prompts, a, b)
    out.mkdir(parents=True, exist_ok=True)
    OVERLAP.write(tables.overlap, out / "overlap.parquet")
    for name in ("overlap", "maps", "directions"):
        write_csv(getattr(tables, name), out / f"{name}.csv")
    metadata = {"fit_hash": str(facts["fit_hash"]), "model_fingerprint": b.fingerprint, **b.identity}
    metadata |= {"residual_norms": json.dumps([float(norm) for norm in b.norms]), "mapped_from": a.fingerprint}
    save_directions(out / "directions.safetensors", tables.mapped, metadata)
    write_config(out, asdict(settings), facts)
    write_alignment_report(tables.overlap, tables.maps, tables.directions, settings.map, out)
    return Outcome(
        kind="alignment",
        name=run_name(settings.model_a, f"to {short_name(settings.model_b)}"),
        facts=facts,
        metrics=_metrics(tables),
        lines=(f"Reference  {prompts.compared_with}", *_lines(settings, tables, a, b)),
    )


def collect(spec: ModelSpec, settings: AlignSettings, prompts: PromptSet, device: torch.device) -> States:
    """Loads a model and runs all texts through it.

    Raises:
        UserError: if words are paired and the tokenizer does not keep them apart.
    """
    loaded = load(spec, device, getattr(torch, settings.dtype))
    stack = BlockStack(loaded.model)

    def encoded(chosen: Sequence[Prompt]) -> list[Tokens]:
        texts = [prompt.text for prompt in chosen]
        tokens = encode(loaded, texts, settings.prepend_bos)
        check_context(loaded, texts, tokens)
        return tokens

    def points(chosen: Sequence[Prompt]) -> FloatArray:
        if settings.unit == "text":
            return text_means(stack, whole(encoded(chosen)), settings.site, fingerprint=loaded.fingerprint)[0]
        positions = [
            word_positions(loaded.tokenizer, prompt.text, settings.prepend_bos, spec.name) for prompt in chosen
        ]
        return token_states(stack, encoded(chosen), positions, settings.site)

    means, norms = text_means(stack, whole(encoded(prompts.fit)), settings.site, fingerprint=loaded.fingerprint)
    neutral = [prompt for prompt in prompts.fit if prompts.reference in (None, prompt.emotion)]
    return States(
        name=spec.name,
        fingerprint=loaded.fingerprint,
        identity=identity(loaded),
        means=means,
        norms=norms.mean(axis=0),
        fitted=points(neutral),
        judged=points(prompts.test),
    )


def word_positions(tokenizer: PreTrainedTokenizerBase, text: str, prepend_bos: bool, name: str) -> list[int]:
    """The position of each word's last token; the first word is left out if that is position 0.

    Models of different tokenizers see the same words; what a model knows of a word is at its last token.

    Raises:
        UserError: if the tokenizer does not tell where its tokens are, one token reaches into the next word, or the text's script puts no
            spaces between words.
    """
    if together := _UNSPACED.search(text):
        raise UserError(
            f"unit=word: {together.group()[:20]!r} is of a script without spaces between words, so they cannot be told apart: use unit=text"
        )
    if not tokenizer.is_fast:
        raise UserError(f"{name}: its tokenizer does not say which characters a token stands for: use unit=text")
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    by_end = {end: i for i, (start, end) in enumerate(spans) if end > start}
    found = []
    for word in re.finditer(r"\S+", text):
        if word.end() not in by_end:
            raise UserError(
                f"{name}: no token ends where the word {word.group()!r} of {text[:40]!r} does, so the models' words cannot be paired: use unit=text"
            )
        found.append(by_end[word.end()] + prepend_bos)
    return [position for position in found if position > 0]


def _facts(prompts: PromptSet, a: States, b: States) -> dict[str, object]:
    return {
        "model_fingerprints": {"a": a.fingerprint, "b": b.fingerprint},
        "n_layers": {"a": a.n_layers, "b": b.n_layers},
        "d_model": {"a": a.means.shape[2], "b": b.means.shape[2]},
        "points_fitted": len(a.fitted),
        "points_judged": len(a.judged),
        "reference": prompts.reference,
        "prompt_source": prompts.source,
        "prompt_split": prompts.split,
        "fit_hash": fit_hash(prompts.fit),
    }


def _metrics(tables: AlignTables) -> Values:
    found: list[tuple[str, float, int]] = []
    for row in matched(tables.overlap).to_dict("records"):
        for name in ("overlap", "overlap_before", "null_mean", "permuted_mean", "ceiling"):
            found.append((f"{name}.k{row['k']}.{row['emotion']}", float(row[name]), int(row["layer_b"])))
    for row in matched(tables.maps).to_dict("records"):
        found.append((f"r2.{row['map']}", float(row["r2"]), int(row["layer_b"])))
    for row in matched(tables.directions).to_dict("records"):
        found.append((f"cosine.{row['emotion']}", float(row[f"cosine_{row['map']}"]), int(row["layer_b"])))
        found.append((f"auc.{row['emotion']}", float(row["auc"]), int(row["layer_b"])))
    return tuple(found)


def _lines(settings: AlignSettings, tables: AlignTables, a: States, b: States) -> Iterator[str]:
    """The answer: overlap before and after, beside both nulls and what is possible, over layers of equal relative depth."""
    first, second = short_name(a.name), short_name(b.name)
    yield ""
    yield f"{settings.map} map from {first} to {second}, fitted on {len(a.fitted)} {settings.unit}s, judged on {len(a.judged)}"
    if len(a.fitted) < min(a.means.shape[2], b.means.shape[2]):
        more = "or unit=word" if settings.unit == "text" else "or longer ones"
        yield f"  fewer {settings.unit}s than dimensions: the map is not determined everywhere; give more neutral texts {more}"
    yield "Overlap of one-dimensional emotion subspaces over layers of equal relative depth (means):"
    for emotion, rows in matched(tables.overlap[tables.overlap["k"] == 1]).groupby("emotion", sort=False):
        mean = rows.mean(numeric_only=True)
        yield (
            f"{emotion}: {mean['overlap_before']:.3f} before, {mean['overlap']:.3f} after; labels shuffled {mean['permuted_mean']:.3f}, "
            f"random {mean['null_mean']:.3f}; two halves of {second}'s own texts {mean['ceiling']:.3f}; "
            f"{(rows['permuted_p'] < 0.05).sum()} of {len(rows)} layers at p < 0.05"
        )
    yield ""


TASK = Task("align", "alignment", "model_b", AlignSettings, run_align)
