"""Small random classifiers of every family, with their tokenizers, and cards of them: no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from emo_mlflow.evaluators import export
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedTokenizerFast

LABELS = ("calm", "cross", "glad")
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
# Family -> config values beyond the common ones. MiniLM is a BERT with many narrow heads.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "minilm": {"hidden_size": 48, "num_attention_heads": 12, "num_hidden_layers": 3, "intermediate_size": 192},
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1},
    "xlm-roberta": {"max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "seq_classif_dropout": 0.0},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False,
                   "type_vocab_size": 0, "pooler_hidden_size": 32},
}  # fmt: skip


def make_tokenizer(pad_id: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens that knows every text, with the padding id that the family wants."""
    special = list(SPECIAL)
    special.insert(pad_id, special.pop(0))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(export.check_texts(60), trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>"
    )


def make_checkpoint(folder: Path, family: str, problem_type: str | None, scale: float = 15.0) -> Path:
    """A random two-layer classifier with weights large enough that its probabilities differ between texts."""
    torch.manual_seed(0)
    common = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 64, "pad_token_id": 0, "problem_type": problem_type,
        "id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)},
    }  # fmt: skip
    config = CONFIG_MAPPING[family.replace("minilm", "bert")](**(common | FAMILIES[family]))
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= scale
    model.save_pretrained(folder)
    make_tokenizer(config.pad_token_id).save_pretrained(folder)
    return folder


def write_card(
    path: Path, source: Path | str, activation: str, labels: Sequence[str] = LABELS, revision: str = ""
) -> Path:
    head = {"name": "mood", "labels": list(labels), "activation": activation}
    card = {"name": "mood", "source": str(source), "revision": revision, "heads": [head]}
    path.write_text(yaml.safe_dump(card), encoding="utf-8")
    return path
