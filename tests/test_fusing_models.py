"""`fuse` on the models that people have: how many sites, the same results, dropout by seed, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.fusing import fuse

from .support import norms_by_hand as hand

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated:DeprecationWarning:torch.*",
    "ignore:.*is deprecated:FutureWarning:torch.*",
)

LAYERS, WIDTH, WORDS, SENTENCES = 2, 32, 50, 2
PLAIN = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": WORDS,
}
DECODER = {**PLAIN, "num_key_value_heads": 2, "use_cache": False}
VISION = {**{name: PLAIN[name] for name in PLAIN if name != "vocab_size"}, "image_size": 8, "patch_size": 4}
BOTH = {
    "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": WORDS,
    "use_cache": False, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
RATES = ("p", "dropout", "activation_dropout", "attention_dropout", "dropout_prob", "drop_prob", "layerdrop")
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
CLIP_TEXT = {**PLAIN, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}


def hf(name: str, **config: Any) -> Callable[[], nn.Module]:
    """A transformers model with random weights, by the beginning of its classes' names."""

    def build() -> nn.Module:
        return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config))

    return build


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, norm_first=norm_first, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


def decoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 48, norm_first=norm_first, batch_first=True)
    return nn.TransformerDecoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH) if norm_first else None)


def words(length: int = 6) -> Tensor:
    return torch.randint(3, WORDS, (SENTENCES, length))


def text() -> dict[str, Tensor]:
    mask = torch.ones(SENTENCES, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": words(), "attention_mask": mask}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(SENTENCES, 3, 8, 8)}


def vectors(*names: str) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(SENTENCES, 5 + index, WIDTH) for index, name in enumerate(names)}


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    fused: int  # Add & Norm calls, of L layers
    left: int  # norm calls without a sum before them
    folded: tuple[str, ...] = ("add",)  # in the last site of all, in train mode


L = LAYERS
SCALED = ("branch_bias", "branch_scale", "row_scale", "add")
FULL = ("branch_bias", "dropout", "add")
CASES = {
    # Post-norm: two sums per layer, and the embeddings' (word and type + position) before the first.
    "bert": Case(hf("Bert", **PLAIN), text, 2 * L + 1, 0, FULL),
    "roberta": Case(hf("Roberta", **PLAIN), text, 2 * L + 1, 0, FULL),
    "distilbert": Case(
        hf("DistilBert", dim=WIDTH, n_layers=L, n_heads=2, hidden_dim=48, vocab_size=WORDS),
        text,
        2 * L + 1,
        0,
        FULL,
    ),
    # Pre-norm: each norm but the first follows the sum of the sublayer before it, the last norm the last sum:
    # 2L + 1 norms, 2L sums. GPT-2's Linear is a Conv1D, an addmm whose bias stays there.
    "gpt2": Case(
        hf("GPT2", n_embd=WIDTH, n_layer=L, n_head=2, vocab_size=WORDS, use_cache=False, **ENDS),
        text,
        2 * L,
        1,
        ("dropout", "add"),
    ),
    "llama": Case(hf("Llama", **DECODER), text, 2 * L, 1),
    "mistral": Case(hf("Mistral", **DECODER), text, 2 * L, 1),
    # The same, and a norm of the queries and one of the keys per layer: 2L more without a sum.
    "qwen3": Case(hf("Qwen3", **DECODER, head_dim=16), text, 2 * L, 2 * L + 1),
    # Sandwich: four norms per layer, of which those after the sublayers have no sum; and queries and keys.
    "gemma3": Case(hf("Gemma3Text", **DECODER, head_dim=16), text, 2 * L, 4 * L + 1),
    # Pre-norm encoder with two sublayers a layer and decoder with three, a final norm each: 2L and 3L sums.
    "t5": Case(
        hf("T5", d_model=WIDTH, num_layers=L, num_heads=2, d_ff=48, d_kv=16, vocab_size=WORDS, use_cache=False),
        lambda: {**text(), "decoder_input_ids": words(5)},
        5 * L,
        2,
        ("dropout", "add"),
    ),
    "whisper": Case(
        hf("Whisper", **BOTH, num_mel_bins=8, max_source_positions=16, max_target_positions=16),
        lambda: {"input_features": torch.randn(SENTENCES, 8, 32), "decoder_input_ids": words(5)},
        5 * L,
        2,
        FULL,
    ),
    # Post-norm, two sublayers in the encoder's layers, three in the decoder's, and both embeddings' sums.
    "bart": Case(hf("Bart", **BOTH, max_position_embeddings=32), text, 5 * L + 2, 0, FULL),
    # Pre-norm; the first norm comes after the embeddings' dropout.
    "vit": Case(hf("ViT", **VISION, hidden_dropout_prob=0.1), image, 2 * L, 1, FULL),
    # Text: pre-norm, but the first norm follows the embeddings' sum: 2L + 1 of 2L + 1. Vision: a norm after the
    # embeddings' sum, then the first layer's norm of that one, 2L - 1 more after sums, and one of the class token.
    "clip": Case(
        hf("CLIP", text_config={**CLIP_TEXT, "projection_dim": 16}, vision_config={**VISION, "projection_dim": 16}),
        lambda: {**text(), **image()},
        4 * L + 1,
        2,
        ("branch_bias", "add"),
    ),
    "encoder, post": Case(lambda: encoder(False), vectors("src"), 2 * L, 0, FULL),
    "encoder, pre": Case(lambda: encoder(True), vectors("src"), 2 * L - 1, 1, FULL),
    "decoder, post": Case(lambda: decoder(False), vectors("tgt", "memory"), 3 * L, 0, FULL),
    "decoder, pre": Case(lambda: decoder(True), vectors("tgt", "memory"), 3 * L, 1, FULL),
    # Post-norm by hand, and timm's block: pre-norm with LayerScale and DropPath; its last sum has no norm after it.
    "by hand": Case(lambda: hand.stack(hand.PostNorm, L, WIDTH), vectors("input"), L, 0, FULL),
    "timm": Case(
        lambda: hand.stack(hand.TimmBlock, L, WIDTH),
        vectors("input"),
        2 * L - 1,
        1,
        SCALED,
    ),
}


def build(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    model = case.build().to(dtype)
    for name, p in model.named_parameters():  # norms and scales that do something
        if p.dim() == 1:
            nn.init.normal_(p, mean=float("weight" in name), std=0.2)
    return model


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}


def first(output: Any) -> Tensor:
    """The last hidden state, or what there is."""
    if isinstance(output, Tensor):
        return output
    return output.logits_per_text if "logits_per_text" in output else output[0]


def results(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output and all gradients, by name."""
    model.zero_grad()
    output = first(model(**inputs))
    torch.manual_seed(9)
    output.backward(torch.randn(output.shape, dtype=torch.float64).to(output.dtype))
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **found}


def quiet(model: nn.Module) -> nn.Module:
    """In train mode, but with nothing random: every probability is 0."""
    for module in model.modules():
        for name in (
            "p",
            "dropout",
            "activation_dropout",
            "attention_dropout",
            "dropout_prob",
            "drop_prob",
            "layerdrop",
        ):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def assert_as_good(after: dict[str, Tensor], before: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Error against float64 at most twice the original's, plus roundings of the whole."""
    assert after.keys() == before.keys() == exact.keys()
    whole = sum(truth.square().sum() for name, truth in exact.items() if name != "output") ** 0.5
    for name, truth in exact.items():
        error = (after[name].double() - truth).norm()
        # a gradient that is zero but for rounding (a key's bias under softmax) has the error of what cancels in it
        scale = truth.norm() + (0 if name == "output" else whole / len(exact))
        limit = 2 * (before[name].double() - truth).norm() + 8 * torch.finfo(after[name].dtype).eps * scale
        assert error <= limit, f"{name}: {error:.3g} > {limit:.3g}"


@pytest.mark.parametrize("name", CASES)
def test_sites_results_dropout_and_undo(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    inputs = case.inputs()
    model = quiet(build(case))
    before = results(model, inputs)
    exact = results(copy.deepcopy(model).double(), cast(inputs, torch.float64))
    handle = fuse(model)
    trying, after = results(model, inputs), results(model, inputs)
    report = handle.report
    assert (report.fused, report.skipped) == (case.fused, case.left), str(report)
    assert report.plain == case.left
    assert report.breaks == ()
    for key, value in trying.items():
        assert torch.equal(value, after[key]), f"{key} differs between the first call and the second"
    assert_as_good(after, before, exact)
    handle.undo()
    for key, value in results(model, inputs).items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_and_dropout_by_seed(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    inputs = cast(case.inputs(), torch.bfloat16)
    model = quiet(build(case, torch.bfloat16))
    before = results(model, inputs)
    exact = results(copy.deepcopy(model).double(), cast(inputs, torch.float64))
    with fuse(model) as handle:
        assert_as_good(results(model, inputs), before, exact)
    assert handle.report.fused == case.fused, str(handle.report)
    noisy = build(case).train()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return first(noisy(**cast(inputs, torch.float32)))

    random = not torch.equal(run(1), run(2))
    with fuse(noisy) as handle:
        run(1)
        assert torch.equal(run(1), run(1))
        assert torch.equal(run(1), run(2)) is not random
    folded = [site.folded for site in handle.report.sites if site.fused]
    assert case.folded in folded, folded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", hand.NORMS, ids=lambda norm: norm.__name__)
def test_norms_by_hand(norm: type[nn.Module], dtype: torch.dtype) -> None:
    """Every way of writing a norm is found, and gives what it gave."""
    torch.manual_seed(2)
    model = hand.Sublayer(WIDTH, norm(WIDTH)).to(dtype)
    nn.init.normal_(model.norm.weight, mean=0.7)
    x = torch.randn(3, 5, WIDTH, dtype=dtype)
    before, exact = results(model, {"x": x}), results(copy.deepcopy(model).double(), {"x": x.double()})
    with fuse(model) as handle:
        assert_as_good(results(model, {"x": x}), before, exact)
        assert_as_good(results(model, {"x": x}), before, exact)
    assert handle.report.fused == 1, str(handle.report)
    assert handle.report.sites[0].folded == ("branch_bias", "residual_scale", "add")
