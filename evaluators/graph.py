"""ONNX graphs: a traced network -> a file, and int8 weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from emo_mlflow.evaluators.network import OUTPUTS, EmotionNetwork
from onnx import numpy_helper as onp
from torch import Tensor, nn

BLOCK = 64
_LARGE_TABLE = 1_000  # rows; smaller embedding tables stay in float


class _Tuple(nn.Module):
    """The network with its outputs in the order of `OUTPUTS`, as the exporter wants them."""

    def __init__(self, network: EmotionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(input_ids, attention_mask)
        return tuple(outputs[name] for name in OUTPUTS)


def write_graph(network: EmotionNetwork, path: Path) -> None:
    """Writes the network as float32 ONNX: input_ids and attention_mask [batch, length] -> logits by output name."""
    ids = torch.ones((2, 9), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.onnx.export(
            _Tuple(network).eval(),
            (ids, mask),
            str(path),
            input_names=list(axes),
            output_names=list(OUTPUTS),
            dynamic_axes=axes | {name: {0: "batch"} for name in OUTPUTS},
            opset_version=17,
            dynamo=False,
        )


def quantize(source: Path, target: Path, block: int = BLOCK) -> None:
    """Writes a copy with int8 weights: matrix products in blocks of `block` inputs, large embedding tables by row.

    ONNX Runtime quantises the other factor of a product by row and block as it runs. So, unlike with its usual dynamic
    quantisation, which takes one scale from the whole batch, a text's scores do not depend on what it is batched with.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(str(source))
    quantizer = MatMulNBitsQuantizer(model, bits=8, block_size=block, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantized = quantizer.model.model
    _quantize_tables(quantized)
    onnx.save(quantized, str(target), save_as_external_data=False)


def _quantize_tables(model: onnx.ModelProto) -> None:
    graph = model.graph
    tables = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.dims[0] < _LARGE_TABLE:
            nodes.append(node)
            continue
        name, ids, out = table.name, node.input[1], node.output[0]
        rows, scales = _int8_rows(onp.to_array(table))
        graph.initializer.remove(table)
        graph.initializer.extend([onp.from_array(rows, f"{name}_int8"), onp.from_array(scales, f"{name}_scale")])
        nodes += [
            onnx.helper.make_node("Gather", [f"{name}_int8", ids], [f"{out}_int8"], axis=0),
            onnx.helper.make_node("Cast", [f"{out}_int8"], [f"{out}_cast"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_scale"], axis=0),
            onnx.helper.make_node("Mul", [f"{out}_cast", f"{out}_scale"], [out]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _int8_rows(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """float32 [rows, width] -> int8 [rows, width] and float32 [rows, 1], whose product is the table, nearly."""
    scales = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
    return np.round(table / scales).astype(np.int8), scales


def fuse(path: Path, n_heads: int, width: int) -> None:
    """Fuses operators of the float32 graph in place; attention stays apart, for `quantize` works on its products."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_attention = False
    optimized = optimize_model(str(path), "bert", num_heads=n_heads, hidden_size=width, optimization_options=options)
    optimized.save_model_to_file(str(path))
