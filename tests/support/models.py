"""The models that people have, small, with random weights: how many of their norm calls follow a sum, and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from . import norms_by_hand as hand


@dataclass(frozen=True)
class Size:
    """Of all models."""

    layers: int
    width: int
    heads: int
    inner: int
    words: int
    sentences: int
    length: int
    image: int  # pixels a side, in patches of 4

    @property
    def head(self) -> int:
        return self.width // self.heads


TINY = Size(layers=2, width=32, heads=2, inner=48, words=50, sentences=2, length=6, image=8)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    fused: int  # Add & Norm calls, of L layers
    left: int  # norm calls without a sum before them
    folded: tuple[str, ...] = ("add",)  # in the last site of all, in train mode


def hf(name: str, **config: Any) -> Callable[[], nn.Module]:
    """A transformers model with random weights, by the beginning of its classes' names."""

    def build() -> nn.Module:
        return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config))

    return build


def encoder(norm_first: bool, size: Size = TINY) -> nn.Module:
    layer = nn.TransformerEncoderLayer(size.width, size.heads, size.inner, norm_first=norm_first, batch_first=True)
    return nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)


def decoder(norm_first: bool, size: Size = TINY) -> nn.Module:
    layer = nn.TransformerDecoderLayer(size.width, size.heads, size.inner, norm_first=norm_first, batch_first=True)
    return nn.TransformerDecoder(layer, size.layers, norm=nn.LayerNorm(size.width) if norm_first else None)


SCALED = ("branch_bias", "branch_scale", "row_scale", "add")
FULL = ("branch_bias", "dropout", "add")
ENDS = {"bos_token_id": 0, "eos_token_id": 0}


def cases(size: Size = TINY) -> dict[str, Case]:
    """By name. The numbers of sites are read off the models' code, in layers L."""
    L, width, words = size.layers, size.width, size.words  # noqa: N806
    plain = {
        "hidden_size": width, "num_hidden_layers": L, "num_attention_heads": size.heads,
        "intermediate_size": size.inner, "vocab_size": words,
    }  # fmt: skip
    causal = {**plain, "num_key_value_heads": size.heads, "use_cache": False}
    vision = {**{name: plain[name] for name in plain if name != "vocab_size"}, "image_size": size.image}
    vision["patch_size"] = 4
    both = {
        "d_model": width, "encoder_layers": L, "decoder_layers": L, "encoder_attention_heads": size.heads,
        "decoder_attention_heads": size.heads, "encoder_ffn_dim": size.inner, "decoder_ffn_dim": size.inner,
        "vocab_size": words, "use_cache": False, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }  # fmt: skip
    clip_text = {**plain, "max_position_embeddings": 2 * size.length, "eos_token_id": 2, **ENDS, "pad_token_id": 1}

    def ids(length: int = size.length) -> Tensor:
        return torch.randint(3, words, (size.sentences, length))

    def text() -> dict[str, Tensor]:
        mask = torch.ones(size.sentences, size.length, dtype=torch.long)
        mask[1, 2 * size.length // 3 :] = 0
        return {"input_ids": ids(), "attention_mask": mask}

    def image() -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(size.sentences, 3, size.image, size.image)}

    def sound() -> dict[str, Tensor]:
        return {"input_features": torch.randn(size.sentences, 8, 4 * size.length), "decoder_input_ids": ids()}

    def vectors(*names: str) -> Callable[[], dict[str, Tensor]]:
        shape = (size.sentences, size.length)
        return lambda: {name: torch.randn(shape[0], shape[1] - index, width) for index, name in enumerate(names)}

    return {
        # Post-norm: two sums per layer, and the embeddings' (word and type + position) before the first.
        "BERT": Case(hf("Bert", **plain), text, 2 * L + 1, 0, FULL),
        "RoBERTa": Case(hf("Roberta", **plain), text, 2 * L + 1, 0, FULL),
        "DistilBERT": Case(
            hf("DistilBert", dim=width, n_layers=L, n_heads=size.heads, hidden_dim=size.inner, vocab_size=words),
            text,
            2 * L + 1,
            0,
            FULL,
        ),
        # Pre-norm: each norm but the first follows the sum of the sublayer before it, the last norm the last sum:
        # 2L + 1 norms, 2L sums. GPT-2's Linear is a Conv1D, an addmm whose bias stays there.
        "GPT-2": Case(
            hf("GPT2", n_embd=width, n_layer=L, n_head=size.heads, vocab_size=words, use_cache=False, **ENDS),
            text,
            2 * L,
            1,
            ("dropout", "add"),
        ),
        # The same, each sum but the embeddings' seen by its norm through a view that makes one dimension of sentences
        # and words, or two again.
        "OPT": Case(
            hf("OPT", hidden_size=width, num_hidden_layers=L, num_attention_heads=size.heads, ffn_dim=size.inner,
               vocab_size=words, word_embed_proj_dim=width, max_position_embeddings=2 * size.length, use_cache=False),
            text,
            2 * L + 1,
            0,
            FULL,
        ),
        "LLaMA": Case(hf("Llama", **causal), text, 2 * L, 1),
        "Mistral": Case(hf("Mistral", **causal), text, 2 * L, 1),
        # The same, and a norm of the queries and one of the keys per layer: 2L more without a sum.
        "Qwen3": Case(hf("Qwen3", **causal, head_dim=size.head), text, 2 * L, 2 * L + 1),
        # Sandwich: four norms per layer, of which those after the sublayers have no sum; and queries and keys.
        "Gemma 3": Case(hf("Gemma3Text", **causal, head_dim=size.head), text, 2 * L, 4 * L + 1),
        # Pre-norm encoder with two sublayers a layer and decoder with three, a final norm each: 2L and 3L sums.
        "T5": Case(
            hf("T5", d_model=width, num_layers=L, num_heads=size.heads, d_ff=size.inner, d_kv=size.head,
               vocab_size=words, use_cache=False),
            lambda: {**text(), "decoder_input_ids": ids(size.length - 1)},
            5 * L,
            2,
            ("dropout", "add"),
        ),
        "Whisper": Case(
            hf("Whisper", **both, num_mel_bins=8, max_source_positions=2 * size.length,
               max_target_positions=2 * size.length),
            sound,
            5 * L,
            2,
            FULL,
        ),
        # Post-norm, two sublayers in the encoder's layers, three in the decoder's, and both embeddings' sums.
        "BART": Case(hf("Bart", **both, max_position_embeddings=4 * size.length), text, 5 * L + 2, 0, FULL),
        # Pre-norm; the first norm comes after the embeddings' dropout.
        "ViT": Case(hf("ViT", **vision, hidden_dropout_prob=0.1), image, 2 * L, 1, FULL),
        # Text: pre-norm, but the first norm follows the embeddings' sum: 2L + 1 of 2L + 1. Vision: a norm after the
        # embeddings' sum, then the first layer's norm of that one, 2L - 1 more after sums, and one of the class token.
        "CLIP": Case(
            hf("CLIP", text_config={**clip_text, "projection_dim": 16}, vision_config={**vision, "projection_dim": 16}),
            lambda: {**text(), **image()},
            4 * L + 1,
            2,
            ("branch_bias", "add"),
        ),
        "nn.TransformerEncoder, post-norm": Case(lambda: encoder(False, size), vectors("src"), 2 * L, 0, FULL),
        "nn.TransformerEncoder, pre-norm": Case(lambda: encoder(True, size), vectors("src"), 2 * L - 1, 1, FULL),
        "nn.TransformerDecoder, post-norm": Case(
            lambda: decoder(False, size), vectors("tgt", "memory"), 3 * L, 0, FULL
        ),
        "nn.TransformerDecoder, pre-norm": Case(lambda: decoder(True, size), vectors("tgt", "memory"), 3 * L, 1, FULL),
        # Post-norm by hand, and timm's block: pre-norm with LayerScale and DropPath; its last sum has no norm after it.
        "post-norm by hand": Case(lambda: hand.stack(hand.PostNorm, L, width), vectors("input"), L, 0, FULL),
        "timm's blocks": Case(lambda: hand.stack(hand.TimmBlock, L, width), vectors("input"), 2 * L - 1, 1, SCALED),
    }  # fmt: skip


def build(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    model = case.build().to(dtype)
    for name, p in model.named_parameters():  # norms and scales that do something
        if p.dim() == 1:
            nn.init.normal_(p, mean=float("weight" in name), std=0.2)
    return model


def first(output: Any) -> Tensor:
    """The last hidden state, or what there is."""
    if isinstance(output, Tensor):
        return output
    return output.logits_per_text if "logits_per_text" in output else output[0]
