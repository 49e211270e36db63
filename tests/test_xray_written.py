"""`inspect` and `Monitor` on models that are written with this library, and on encoder-decoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import addnorm
from addnorm import Monitor
from addnorm.xray import inspect

from .support.faulty import WIDTH as FAULTY
from .support.faulty import Post

WIDTH = 8


def cubes(output: Tensor) -> Tensor:
    return (output**3).sum()


class Plain(nn.Module):
    """A `Stack` written out with torch's own norms."""

    def __init__(self, stack: addnorm.Stack, placement: str, alpha: float = 1.0) -> None:
        super().__init__()
        self.sublayers, self.placement, self.alpha = stack.sublayers, placement, alpha
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH).double() for _ in range(len(stack.sublayers) + 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.placement == "pre":
            for f, norm in zip(self.sublayers, self.norms, strict=False):
                x = x + f(norm(x))
            return self.norms[-1](x)
        for f, norm in zip(self.sublayers, self.norms, strict=False):
            x = norm(self.alpha * x + f(x))
        return x


@pytest.mark.parametrize(
    ("placement", "alpha", "carry"), [("pre", 1.0, "z"), ("post", 1.0, "y"), ("deepnorm", 4**0.25, "y")]
)
def test_a_stack_has_the_numbers_of_the_same_model_written_out(placement: str, alpha: float, carry: str) -> None:
    torch.manual_seed(3)
    sublayers = [nn.Linear(WIDTH, WIDTH).double() for _ in range(4)]
    stack = addnorm.Stack(sublayers, WIDTH, placement=placement, dropout=0.2, dtype=torch.float64)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    found = inspect(stack, [x], loss=cubes).sites
    expected = inspect(Plain(stack, placement, alpha), [x], loss=cubes).sites
    assert {site.carry for site in found} == {carry}
    assert [site.site for site in found] == [
        f"placement.{name}" for name in (["norms.1", "norms.2", "norms.3", "final_norm"] if placement == "pre" else
                                         [f"norms.{i}" for i in range(4)])
    ]  # fmt: skip
    for site, twin in zip(found, expected, strict=True):
        for name, value in site.values.items():
            assert value == (None if twin.values[name] is None else pytest.approx(twin.values[name], rel=1e-9)), name


def test_a_monitored_stack_takes_the_same_steps() -> None:
    """The same dropout masks too."""
    seen: list[dict[str, float]] = []
    results = []
    for watched in (False, True):
        torch.manual_seed(5)
        stack = addnorm.Stack([nn.Linear(WIDTH, WIDTH) for _ in range(2)], WIDTH, placement="pre", dropout=0.3)
        monitor = Monitor(stack, every=1, log=seen.append) if watched else None
        y = stack(torch.randn(2, 3, WIDTH))
        (y**3).sum().backward()
        if monitor is not None:
            monitor.close()
        results.append([y.detach(), *(p.grad for p in stack.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert "placement.final_norm/gamma_gradient_norm" in seen[0]


def test_a_norm_alone_is_no_site() -> None:
    stack = addnorm.Stack([nn.Linear(WIDTH, WIDTH) for _ in range(2)], WIDTH, placement="pre")
    found = inspect(stack, [torch.randn(1, 3, WIDTH)])
    assert found.skipped == {"placement.norms.0": "no sum: a norm alone"}


def test_a_placement_without_a_norm_has_no_site() -> None:
    stack = addnorm.Stack([nn.Linear(WIDTH, WIDTH) for _ in range(2)], WIDTH, placement="rezero")
    with pytest.raises(ValueError, match=r"no Add & Norm site found in Stack: .* rezero has no norm"):
        inspect(stack, [torch.randn(1, 3, WIDTH)])


def padded(length: int, real: int) -> Tensor:
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[1, real:] = True
    return mask


def seq2seq(**masks: Tensor) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"src": torch.randn(2, 6, WIDTH), "tgt": torch.randn(2, 6, WIDTH), **masks}


@pytest.fixture(scope="module")
def transformer() -> nn.Transformer:
    torch.manual_seed(0)
    return nn.Transformer(WIDTH, 2, 1, 1, 16, batch_first=True)


def test_encoder_and_decoder_have_their_own_padding(transformer: nn.Transformer) -> None:
    source, target = padded(6, 4), padded(6, 5)
    whole = inspect(
        transformer,
        [seq2seq(src_key_padding_mask=source, memory_key_padding_mask=source, tgt_key_padding_mask=target)],
        loss=cubes,
    )
    assert {(site.site.split(".")[0], site.padding) for site in whole.sites} == {("encoder", 2), ("decoder", 1)}
    assert all(site.values["padding_leakage"] == 0 for site in whole.sites)
    half = inspect(transformer, [seq2seq(src_key_padding_mask=source, memory_key_padding_mask=source)])
    assert {(site.site.split(".")[0], site.padding) for site in half.sites} == {("encoder", 2), ("decoder", 0)}
    assert all(site.values["padding_leakage"] == 0 for site in half.sites)


def test_a_decoder_alone_has_its_own_padding(transformer: nn.Transformer) -> None:
    data = seq2seq(tgt_key_padding_mask=padded(6, 5))
    data["memory"] = data.pop("src")
    found = inspect(transformer.decoder, [data])
    assert {site.padding for site in found.sites} == {1}
    assert all(site.values["padding_leakage"] == 0 for site in found.sites)


def test_the_sources_padding_is_not_that_of_inputs_made_from_labels(transformer: nn.Transformer) -> None:
    """As T5 and BART make the decoder's."""

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, src: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
            padding = attention_mask == 0
            return self.transformer(src, labels, src_key_padding_mask=padding, memory_key_padding_mask=padding)

    source, target = torch.randn(2, 2, 6, WIDTH)
    found = inspect(Labelled(), [{"src": source, "attention_mask": ~padded(6, 4), "labels": target}])
    assert {(site.site.split(".")[1], site.padding) for site in found.sites} == {("encoder", 2), ("decoder", 0)}
    assert all(site.values["padding_leakage"] == 0 for site in found.sites)


@pytest.mark.parametrize("labels", [None, torch.zeros(2)], ids=["no labels", "one label for each sequence"])
def test_a_decoder_without_inputs_of_its_own_has_the_encoders_padding(
    transformer: nn.Transformer, labels: Tensor | None
) -> None:
    """As BART makes them where it gets no others: each token sees those before it."""

    class Shifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer, self.causal = transformer, nn.Transformer.generate_square_subsequent_mask(6)

        def forward(self, src: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Tensor:
            masks = dict.fromkeys(("src_key_padding_mask", "memory_key_padding_mask"), attention_mask == 0)
            shifted = torch.cat((torch.ones_like(src[:, :1]), src[:, :-1]), 1)
            return self.transformer(src, shifted, tgt_mask=self.causal, tgt_is_causal=True, **masks)

    batch = {"src": torch.randn(2, 6, WIDTH), "attention_mask": ~padded(6, 4), "labels": labels}
    found = inspect(Shifting(), [batch])
    assert {(site.site.split(".")[1], site.padding) for site in found.sites} == {("encoder", 2), ("decoder", 2)}
    assert {each.measurement for each in found.findings} == set()


def test_a_texts_padding_is_not_the_images() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model, self.text_model = Post(1), Post(1)

        def forward(self, text: Tensor, image: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            return self.text_model(text), self.vision_model(image)

    text, image = torch.randn(2, 2, 6, FAULTY)
    found = inspect(Towers(), [{"text": text, "image": image, "attention_mask": ~padded(6, 4)}])
    assert {(site.site.split(".")[0], site.padding) for site in found.sites} == {("text_model", 2), ("vision_model", 0)}


def test_a_decoder_that_sees_padded_sources_leaks(transformer: nn.Transformer) -> None:
    found = inspect(transformer, [seq2seq(src_key_padding_mask=padded(6, 4))])
    leaking = {each.site for each in found.findings if each.measurement == "padding_leakage"}
    assert leaking
    assert all(site.startswith("decoder.") for site in leaking)


def test_what_the_decoder_only_attends_to_has_no_identity_share(transformer: nn.Transformer) -> None:
    found = inspect(transformer, [seq2seq()], loss=cubes)
    for site in found.sites:
        assert (site.values["identity_share"] is None) == site.site.startswith("encoder")
        assert site.values["gradient_profile"] is not None
    assert "identity_share" not in {each.measurement for each in found.findings}
