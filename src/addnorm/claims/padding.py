"""Claim 11: BatchNorm and padding, with three sentences of different length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..functional import add_norm
from ..plot import Control, Curve, Plot
from .base import SIGMAS, Claim, Evidence, Number, generator, near, values

SENTENCES = (
    "I am a boy",
    "I love swimming",
    "the old man walked slowly down to the quiet river to catch fish before sunrise",
)
WIDTH, EPS, MEAN, PAD = 12, 1e-5, 1.0, 0.0
EXTRA, PADS = (0, 5, 10, 20, 40, 80, 160), (-2.0, 0.0, 1.0, 3.0)
BATCH, LENGTH, FEATURES, DRAWS, ICC = 16, 32, 64, 256, 0.3


def run(seed: int) -> Evidence:
    words = embed(seed)
    longest = max(len(sentence.split()) for sentence in SENTENCES)
    pads = longest * len(SENTENCES) - len(words)
    p = pads / (pads + len(words))
    mean, variance = words.mean(0), words.var(0, correction=0)
    padded, longer = pad(words, pads, PAD), pad(words, pads + 90, PAD)
    law_mean = (1 - p) * mean + p * PAD
    law_variance = (1 - p) * variance + p * (1 - p) * (mean - PAD) ** 2
    rounding = 100 * 2.0**-53
    tokens = len(words)
    numbers = (
        near("share of pads, three sentences", p, 23 / 45, 0.0, "11 + 12 + 0 of 3 x 15 places: exact"),
        gap("BatchNorm's mean with pads - (1-p) mu + p c", padded.mean(0), law_mean, rounding,
            "a mixture of two groups, exact; rounding"),
        gap("its variance - closed form", padded.var(0, correction=0), law_variance, rounding,
            "(1-p) v + p (1-p) (mu - c)^2, exact; rounding"),
        near("change of a word when 90 pads come: plain BatchNorm", moved(batch_norm(padded), batch_norm(longer),
             tokens), law_change(words, pads, pads + 90), rounding, "from the closed forms; rounding"),
        gap("the same, masked BatchNorm", batch_norm(padded, tokens)[:tokens], batch_norm(longer, tokens)[:tokens], 0.0,
            "pads do not enter: equal bit for bit"),
        gap("the same, LayerNorm", add_norm(padded, eps=EPS)[:tokens], add_norm(longer, eps=EPS)[:tokens], 0.0,
            "other rows do not enter: equal bit for bit"),
        batch_noise(seed),
    )  # fmt: skip
    return Evidence(numbers, plot(words, pads))


def embed(seed: int) -> Tensor:
    """One vector per word of the three sentences, the same word the same vector: (words, features)."""
    words = [word for sentence in SENTENCES for word in sentence.split()]
    index = {word: i for i, word in enumerate(dict.fromkeys(words))}
    table = MEAN + torch.randn(len(index), WIDTH, generator=generator(seed), dtype=torch.float64)
    return table[[index[word] for word in words]]


def pad(words: Tensor, count: int, value: float) -> Tensor:
    return torch.cat((words, torch.full((count, words.shape[1]), value, dtype=words.dtype)))


def batch_norm(x: Tensor, tokens: int | None = None) -> Tensor:
    """BatchNorm by the batch's statistics, of the first `tokens` rows (masked) or of all (plain)."""
    seen = x[:tokens]
    return (x - seen.mean(0)) / (seen.var(0, correction=0) + EPS).sqrt()


def moved(before: Tensor, after: Tensor, tokens: int) -> float:
    return (before[:tokens] - after[:tokens]).abs().max().item()


def gap(name: str, found: Tensor, expected: Tensor, band: float, why: str) -> Number:
    return Number(f"{name}, largest", (found - expected).abs().max().item(), 0.0, 0.0, band, why)


def law_change(words: Tensor, before: int, after: int) -> float:
    """The largest change of a word's output under plain BatchNorm, from the closed forms alone."""
    mean, variance, outputs = words.mean(0), words.var(0, correction=0), []
    for count in (before, after):
        p = count / (count + len(words))
        centre = (1 - p) * mean + p * PAD
        spread = (1 - p) * variance + p * (1 - p) * (mean - PAD) ** 2
        outputs.append((words - centre) / (spread + EPS).sqrt())
    return (outputs[0] - outputs[1]).abs().max().item()


def batch_noise(seed: int) -> Number:
    """How much a batch's mean wanders without any padding, when a sentence's tokens are alike."""
    random = generator(seed)
    shared = torch.randn(DRAWS, BATCH, 1, FEATURES, generator=random)
    own = torch.randn(DRAWS, BATCH, LENGTH, FEATURES, generator=random)
    x = math.sqrt(ICC) * shared + math.sqrt(1 - ICC) * own
    found = x.mean((1, 2)).square().mean().item()
    expected = (1 + (LENGTH - 1) * ICC) / (BATCH * LENGTH)
    why = "(1 + (m - 1) ICC)/n, m = 32, n = 512, ICC = 0.3; chi-squared over 256 batches x 64 features, 5 deviations"
    return near("noise of masked BatchNorm's mean, |mu_B - mu|^2 / (d sigma^2)", found, expected,
                SIGMAS * expected * math.sqrt(2 / (DRAWS * FEATURES)), why)  # fmt: skip


def plot(words: Tensor, pads: int) -> Plot:
    """The word "boy" under the three norms, by further pads and the pads' value."""
    boy, tokens = 3, len(words)
    curves: dict[str, list[tuple[float, ...]]] = {"plain BatchNorm": [], "masked BatchNorm": [], "LayerNorm": []}
    for extra in EXTRA:
        for value in PADS:
            x = pad(words, pads + extra, value)
            for name, y in zip(curves, (batch_norm(x), batch_norm(x, tokens), add_norm(x, eps=EPS)), strict=True):
                curves[name].append(values(y[boy]))
    return Plot(
        'The word "boy" after the norm',
        tuple(range(1, WIDTH + 1)),
        tuple(Curve(name, tuple(frames), "bars") for name, frames in curves.items()),
        "feature",
        "value",
        (Control("pads beyond the 23 needed", EXTRA), Control("value of a pad", PADS, 1)),
    )


CLAIM = Claim(
    11,
    "padding",
    "BatchNorm and padding",
    "BatchNorm fails on text because of padding and different lengths; LayerNorm does not care.",
    "loose",
    f'Partly. "{SENTENCES[0]}", "{SENTENCES[1]}" and a sentence of 15 words make a batch of 45 places, 23 of them '
    "pads. Plain BatchNorm counts the pads: its mean and variance shift by a closed form, and each word changes with "
    "the number of pads. Masking the pads removes exactly that. What stays is noise: the words of a sentence are "
    "alike, so that a batch's mean wanders far more than its token count suggests, and training differs from "
    "inference. LayerNorm has neither problem.",
    "mu' = (1-p) mu + p c,  v' = (1-p) v + p (1-p) (mu - c)^2        E|mu_B - mu|^2 = d sigma^2 (1 + (m-1) ICC) / n",
    "derived here (mixture moments; design effect, Kish 1965); Shen et al. 2020 (PowerNorm), arXiv:2003.07845; Wang, "
    "Wu & Huang 2022, arXiv:2210.05153",
    run,
)
