"""The embedded scorer's network: a small BERT encoder shared by four outputs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertModel

# Output name -> width; the names are those of the exported graph's outputs.
OUTPUTS = {"sentiment": 3, "politeness_score": 1, "politeness": 3, "goemotions": 28}


class Head(nn.Module):
    """Pools tokens by their mean and by learned attention, then a hidden layer."""

    def __init__(self, width: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.Linear(width, 1)
        self.hidden = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, n_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [batch, length, width], mask [batch, length] of 0 and 1 -> logits [batch, n_out]."""
        weights = mask[..., None].to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1)
        scores = self.attention(tokens) + (weights - 1) * 1e4
        attended = (tokens * torch.softmax(scores, dim=1)).sum(1)
        pooled = self.dropout(torch.cat([mean, attended], dim=-1))
        return self.out(self.dropout(nn.functional.gelu(self.hidden(pooled))))


class EmotionNetwork(nn.Module):
    """Encoder and one head per output of `OUTPUTS`."""

    def __init__(self, encoder: BertModel, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict({name: Head(width, n_out, dropout) for name, n_out in OUTPUTS.items()})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Both int64 [batch, length] -> logits by output name, [batch, width of the output]."""
        tokens = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        return {name: head(tokens, attention_mask) for name, head in self.heads.items()}


def load_encoder(folder: Path) -> BertModel:
    """The pretrained encoder in float32, without pooler and attention dropout.

    Attention is eager: PyTorch's fused one took a quarter of a training step, its bfloat16 backward pass being slow on a CPU.
    """
    return BertModel.from_pretrained(
        folder,
        add_pooling_layer=False,
        attn_implementation="eager",
        dtype=torch.float32,
        attention_probs_dropout_prob=0.0,
    )


def parameter_groups(network: EmotionNetwork, lr: float, decay: float, weight_decay: float) -> list[dict[str, object]]:
    """Learning rates that fall by `decay` per layer from the heads down; no weight decay on vectors.

    Layer-wise decay as in Howard and Ruder (2018), section 3.2.
    """
    n_layers = network.encoder.config.num_hidden_layers
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if name.startswith("heads"):
            depth = 0
        elif ".layer." in name:
            depth = n_layers - int(name.split(".layer.")[1].split(".")[0])
        else:
            depth = n_layers + 1
        groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * decay**depth, "weight_decay": weight_decay if is_matrix else 0.0}
        for (depth, is_matrix), parameters in groups.items()
    ]
