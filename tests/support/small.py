"""Small models with Add & Norm sites, their inputs, and what is compared before and after fusing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

pytest.importorskip("transformers")

import transformers

from .models import first

LAYERS, WIDTH, WORDS = 2, 32, 50


class Sublayer(nn.Module):
    """Hand-written post-norm with LayerNorm as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1)
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        branch = F.dropout(torch.tanh(self.linear(x)), self.drop.p, self.training)
        return F.layer_norm(x + branch, (WIDTH,), self.weight, self.bias)


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=48, vocab_size=WORDS
        )
    )


def gpt2() -> nn.Module:
    return transformers.GPT2Model(
        transformers.GPT2Config(
            n_embd=WIDTH, n_layer=LAYERS, n_head=2, vocab_size=WORDS, bos_token_id=0, eos_token_id=0, use_cache=False
        )
    )


def llama() -> nn.Module:
    return transformers.LlamaModel(
        transformers.LlamaConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=48, vocab_size=WORDS, use_cache=False,
        )
    )  # fmt: skip


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, norm_first=norm_first, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    fused: int
    skipped: int
    words: bool = True

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(3)
        model = self.build().to(dtype)
        for name, p in model.named_parameters():  # norms that do something
            if p.dim() == 1:
                nn.init.normal_(p, mean=float("weight" in name), std=0.2)
        return model

    def inputs(self, length: int = 7, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        torch.manual_seed(length)
        if not self.words:
            return {"input" if self.build is sequential else "src": torch.randn(3, length, WIDTH).to(dtype)}
        mask = torch.ones(3, length, dtype=torch.long)
        mask[1, length // 2 :] = 0
        return {"input_ids": torch.randint(WORDS, (3, length)), "attention_mask": mask}


def sequential() -> nn.Module:
    return nn.Sequential(*(Sublayer() for _ in range(LAYERS)))


CASES = {
    "bert": Case(bert, 2 * LAYERS + 1, 0),
    "gpt2": Case(gpt2, 2 * LAYERS, 1),
    "llama": Case(llama, 2 * LAYERS, 1),
    "post": Case(lambda: encoder(False), 2 * LAYERS, 0, words=False),
    "pre": Case(lambda: encoder(True), 2 * LAYERS - 1, 1, words=False),
    "functional": Case(sequential, LAYERS, 0, words=False),
}


def results(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output and all gradients, by name."""
    model.zero_grad()
    output = first(model(**inputs))
    torch.manual_seed(9)
    output.backward(torch.randn(output.shape, dtype=torch.float64).to(output.dtype))
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"output": output.detach(), **found}


def wide(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}


def no_dropout(model: nn.Module) -> nn.Module:
    """In train mode, but with every probability 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model.train()


def assert_as_good(after: dict[str, Tensor], before: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Error against float64 at most twice the original's, plus roundings of the largest value."""
    assert after.keys() == before.keys()
    for name, truth in exact.items():
        error = (after[name].double() - truth).norm()
        limit = 2 * (before[name].double() - truth).norm() + 8 * torch.finfo(after[name].dtype).eps * truth.norm()
        assert error <= limit, f"{name}: {error:.3g} > {limit:.3g}"
