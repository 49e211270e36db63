"""What `addnorm.fuse` finds in the architectures of transformers, and how exact it leaves them.

python -m benchmarks.architectures > docs/architectures.md
python -m benchmarks.architectures NAME ...                   # some of them

Each has two layers, width 32 and random weights, and is trained for a step: dropout off, since its random numbers would
be others.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import addnorm
from addnorm.machine import version

LAYERS, WIDTH, HEADS, INNER, WORDS, LENGTH = 2, 32, 2, 48, 64, 6

PLAIN = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER,
    "vocab_size": WORDS,
}  # fmt: skip
CAUSAL = {**PLAIN, "num_key_value_heads": HEADS, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1,
          "eos_token_id": 2}  # fmt: skip
SPLIT = {**CAUSAL, "head_dim": WIDTH // HEADS}
GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": WORDS, "use_cache": False, "bos_token_id": 1,
       "eos_token_id": 2}  # fmt: skip
XLM = {"emb_dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_words": WORDS, "use_lang_emb": False}
BOTH = {
    "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "vocab_size": WORDS,
    "use_cache": False, "pad_token_id": 0, "decoder_start_token_id": 0, "max_position_embeddings": 4 * LENGTH,
}  # fmt: skip
T5 = {"d_model": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "d_ff": INNER, "d_kv": WIDTH // HEADS,
      "vocab_size": WORDS, "use_cache": False}  # fmt: skip
VISION = {**{name: value for name, value in PLAIN.items() if name != "vocab_size"}, "image_size": 8, "patch_size": 4}
SPEECH = {
    **PLAIN, "conv_dim": [WIDTH, WIDTH], "conv_kernel": [3, 3], "conv_stride": [2, 2], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}  # fmt: skip

Inputs = Callable[[], dict[str, Tensor]]


def words() -> Tensor:
    return torch.randint(3, WORDS - 4, (2, LENGTH))


def text() -> dict[str, Tensor]:
    return {"input_ids": words()}


def texts() -> dict[str, Tensor]:
    return {"input_ids": words(), "decoder_input_ids": words()}


def image(side: int = 8) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, side, side)}


def large_image() -> dict[str, Tensor]:
    return image(16)


def sound() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 200)}


ARCHITECTURES: dict[str, tuple[dict[str, Any], Inputs]] = {
    # Encoders of text
    **dict.fromkeys(("Bert", "Roberta", "MPNet", "NomicBert"), (PLAIN, text)),
    "DistilBert": (
        {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER, "vocab_size": WORDS},
        text,
    ),
    "Electra": ({**PLAIN, "embedding_size": WIDTH}, text),
    "Albert": ({**PLAIN, "embedding_size": WIDTH // 2}, text),
    **dict.fromkeys(
        ("Deberta", "DebertaV2"), ({**PLAIN, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, text)
    ),
    "ModernBert": ({**PLAIN, "pad_token_id": 0, "global_attn_every_n_layers": 1}, text),
    **dict.fromkeys(("XLM", "Flaubert"), (XLM, text)),
    "XLNet": ({"d_model": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "d_inner": INNER, "vocab_size": WORDS}, text),
    # Decoders
    **dict.fromkeys(("GPT2", "GPTBigCode"), (GPT, text)),
    "GPTJ": ({**GPT, "rotary_dim": 8}, text),
    "CodeGen": ({**GPT, "n_head": 4, "rotary_dim": 4}, text),
    "GPTNeo": (
        {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "vocab_size": WORDS, "use_cache": False,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, "window_size": 4},
        text,
    ),
    **dict.fromkeys(("GPTNeoX", "Falcon", "BioGpt"), ({**PLAIN, "use_cache": False}, text)),
    "Bloom": (
        {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": WORDS, "use_cache": False},
        text,
    ),
    "Mpt": (
        {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "vocab_size": WORDS, "use_cache": False,
         "max_seq_len": 64},
        text,
    ),
    "OPT": ({**CAUSAL, "ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64}, text),
    **dict.fromkeys(
        ("Llama", "Mistral", "Qwen2", "Phi", "Phi3", "Olmo", "Olmo2", "Starcoder2", "StableLm", "Cohere", "Granite",
         "Persimmon", "Nemotron"),
        (CAUSAL, text),
    ),
    **dict.fromkeys(("Qwen3", "Gemma", "Gemma2", "Gemma3Text", "Glm"), (SPLIT, text)),
    "Mamba": ({"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": WORDS, "use_cache": False}, text),
    # Encoders with a decoder
    **dict.fromkeys(("Bart", "Marian", "Blenderbot", "Pegasus"), (BOTH, texts)),
    **dict.fromkeys(("T5", "MT5"), (T5, texts)),
    # Images and sound
    **dict.fromkeys(("ViT", "DeiT", "Dinov2", "SiglipVision", "CLIPVision"), (VISION, image)),
    "Beit": ({**VISION, "layer_scale_init_value": 0.1}, image),
    "Swin": (
        {"image_size": 16, "patch_size": 4, "embed_dim": WIDTH // 2, "depths": [LAYERS], "num_heads": [HEADS],
         "window_size": 2},
        large_image,
    ),
    "Segformer": (
        {"num_encoder_blocks": 1, "depths": [LAYERS], "sr_ratios": [1], "hidden_sizes": [WIDTH], "patch_sizes": [3],
         "strides": [2], "num_attention_heads": [HEADS], "mlp_ratios": [2]},
        large_image,
    ),
    **dict.fromkeys(("Wav2Vec2", "Wav2Vec2Conformer"), (SPEECH, sound)),
}  # fmt: skip


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name][0])
    model = getattr(transformers, f"{name}Model")(config)
    for module in model.modules():
        for attribute, value in vars(module).items():
            if isinstance(value, float) and (attribute == "p" or "drop" in attribute):
                setattr(module, attribute, 0.0)
    return model.train()


def step(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The output, and the gradients one after another."""
    model.zero_grad()
    output = model(**inputs)[0]
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape, dtype=torch.float64).to(output.dtype))
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return output.detach().flatten(), torch.cat(gradients)


def row(name: str) -> str:
    model, inputs = build(name), ARCHITECTURES[name][1]()
    wide = {key: t.double() if t.is_floating_point() else t for key, t in inputs.items()}
    before, exact = step(model, inputs), step(copy.deepcopy(model).double(), wide)
    with addnorm.fuse(model, mode="eager") as handle:
        step(model, inputs)  # which tries the sites
        after = step(model, inputs)
    report = handle.report
    errors = [
        (new.double() - truth).norm() / (old.double() - truth).norm()
        for new, old, truth in zip(after, before, exact, strict=True)
    ]
    left = report.skipped - report.plain
    counts = f"{len(report.sites)} | {report.fused} | {report.plain} | {left}"
    return f"| {name} | {counts} | {errors[0]:.2f} | {errors[1]:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all of {', '.join(ARCHITECTURES)}")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in ARCHITECTURES]:
        parser.error(f"{', '.join(unknown)}: unknown; the names are {', '.join(ARCHITECTURES)}")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print(HEAD)
    for name in args.names or ARCHITECTURES:
        print(row(name), flush=True)
        print(name, file=sys.stderr)
        torch._dynamo.reset()


HEAD = f"""\
# What fuse finds in the architectures of transformers

Printed by [benchmarks/architectures.py](../benchmarks/architectures.py), with transformers {version("transformers")},
torch {torch.__version__} and addnorm {version("addnorm")}. Each model has {LAYERS} layers, width {WIDTH} and random
weights, and is trained for a step in float32, without dropout, in mode "eager".

Of the norm calls, "with the sum" are Add & Norm in one operation; "alone" are fused norms before which there is no sum
of two tensors: mostly the first norm, norms of queries and keys, and norms between a sublayer and its sum. Two norms of
one sum, as beside parallel sublayers, are one of each. The errors are those of the fused model, of its output and of
all gradients, each as a norm and against float64, over the errors of the original.

| model | norm calls | with the sum | alone | left as they are | error of the output | of the gradients |
| - | -: | -: | -: | -: | -: | -: |"""


if __name__ == "__main__":
    main()
