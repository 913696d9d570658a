"""A scorer small enough to compute by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers

from emo_mlflow.common.files import sha256
from emo_mlflow.scoring import cards
from emo_mlflow.scoring.cards import CARD, GRAPH, TOKENIZER, Card, Head

HEADS = (
    Head("tone", ("low", "high"), "softmax", "logits"),
    Head("signs", ("a", "b"), "sigmoid", "logits", temperature=2.0),
    Head("raw", ("x", "y"), "identity", "logits"),
)


def write_scorer(folder: Path, heads: tuple[Head, ...] = HEADS, name: str = "tiny", weight: float = 0.5) -> Path:
    """A graph whose logits are (weight x sum of token ids, number of tokens), both through the mask."""
    folder.mkdir(parents=True, exist_ok=True)
    node = helper.make_node
    nodes = [
        node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        node("ReduceSum", ["masked", "axis"], ["sum_i"], keepdims=1),
        node("ReduceSum", ["attention_mask", "axis"], ["n_i"], keepdims=1),
        node("Cast", ["sum_i"], ["sum_f"], to=TensorProto.FLOAT),
        node("Cast", ["n_i"], ["n_f"], to=TensorProto.FLOAT),
        node("Mul", ["sum_f", "weight"], ["scaled"]),
        node("Concat", ["scaled", "n_f"], ["logits"], axis=1),
    ]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "l"]) for n in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])],
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("weight", TensorProto.FLOAT, [1], [weight]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / GRAPH)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 7, "one": 1, "two": 2, "three": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / TOKENIZER))
    card = Card(name, "made in a test", heads, max_length=32, pad_id=9)
    return seal(folder, card)


def seal(folder: Path, card: Card) -> Path:
    """Writes the card with the hashes of what is in the folder."""
    hashes = {n: sha256(folder / n) for n in (GRAPH, TOKENIZER)}
    (folder / CARD).write_text(cards.dump_card(replace(card, files=hashes)), encoding="utf-8")
    return folder
