"""A healthy model raises no warning: as people build them, at initialisation, narrow and wide, shallow and deep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.xray import inspect

transformers: Any = pytest.importorskip("transformers")

from .support.models import TINY, Size, cases, first  # noqa: E402

VOCABULARY = {"vocab_size": 100}
MASK = torch.ones(3, 10, dtype=torch.long)
MASK[1, 7:] = 0


def words() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 90, (3, 10)), "attention_mask": MASK}


def bert(width: int, layers: int) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=4, **VOCABULARY
    )
    return transformers.BertModel(config)


def gpt2(width: int, layers: int) -> nn.Module:
    return transformers.GPT2Model(transformers.GPT2Config(n_embd=width, n_layer=layers, n_head=4, **VOCABULARY))


def llama(width: int, layers: int) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4, **VOCABULARY
    )
    return transformers.LlamaModel(config)


def t5(width: int, layers: int) -> nn.Module:
    config = transformers.T5Config(
        d_model=width, d_kv=width // 4, d_ff=4 * width, num_layers=layers, num_heads=4, **VOCABULARY
    )
    return transformers.T5EncoderModel(config)


MODELS: dict[str, Callable[[int, int], nn.Module]] = {"BERT": bert, "GPT-2": gpt2, "LLaMA": llama, "T5": t5}


def cubed(output: Any) -> Tensor:
    """A loss whose gradient is not 0 after a norm."""
    return (output[0] ** 3).mean()


@pytest.mark.parametrize(("width", "layers"), [(32, 2), (256, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_at_initialisation(name: str, width: int, layers: int) -> None:
    model = MODELS[name](width, layers)
    assert inspect(model, [words(), words()], loss=cubed).findings == ()


WIDER = replace(TINY, layers=3, width=128, heads=4, inner=256, words=100, sentences=3, length=12, image=16)


@pytest.mark.parametrize("size", [TINY, WIDER], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", ["CLIP", "Gemma 3", "Whisper"])
def test_models_of_other_kinds_at_initialisation(name: str, size: Size) -> None:
    """Two towers and a sum of embeddings under a norm; norms after the sublayers; sinusoids longer than any branch."""
    case = cases(size)[name]
    torch.manual_seed(3)
    model = case.build()
    torch.manual_seed(1)
    found = inspect(model, [case.inputs(), case.inputs()], loss=lambda output: (first(output) ** 3).mean())
    assert found.findings == (), str(found)


def test_an_idle_branch_is_found_beside_another_stream() -> None:
    """In an encoder whose stream is longer than the decoder's."""
    case = cases(TINY)["Whisper"]
    torch.manual_seed(3)
    model: Any = case.build()
    with torch.no_grad():
        for parameter in model.encoder.layers[1].fc2.parameters():
            parameter *= 1e-3
    found = inspect(model, [case.inputs()])
    assert {each.measurement for each in found.findings} == {"residual_ratio", "block_influence"}
    assert {each.site for each in found.findings} == {"encoder.layer_norm"}  # the norm that follows the branch's sum


@pytest.mark.parametrize("layers", [2, 12])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_encoder_at_initialisation(norm_first: bool, layers: int) -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=norm_first)
    final = nn.LayerNorm(64) if norm_first else None
    model = nn.TransformerEncoder(layer, layers, norm=final, enable_nested_tensor=False)
    data = {"src": torch.randn(3, 10, 64), "src_key_padding_mask": MASK == 0}
    assert inspect(model, [data], loss=lambda output: (output**3).mean()).findings == ()
