"""The mask: the published generator, its order, and its statistics."""

from __future__ import annotations

import math

import pytest
import torch

from addnorm import rng

# Random123's known answers for philox4x32-10: counter, key, output.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SIGMAS = 5  # a fair generator is this far out once in two million; the draws are fixed, so this never flickers


def words(text: str) -> list[torch.Tensor]:
    return [torch.tensor(int(word, 16)) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_known_answers(counter: str, key: str, output: str) -> None:
    assert [int(word) for word in rng.philox(*words(key), *words(counter))] == [int(w) for w in words(output)]


def test_lanes_are_the_words_in_column_order() -> None:
    """key = seed and counter = (row, column // 8), low words first; low half of each word first."""
    seed, rows, columns = 0x123456789ABCDEF0, 3, 20
    lanes = rng.lanes(seed, rows, columns)
    assert lanes.shape == (rows, columns)
    for row in range(rows):
        for column in range(columns):
            counter = [torch.tensor(v) for v in (row, 0, column // 8, 0)]
            drawn = rng.philox(torch.tensor(0x9ABCDEF0), torch.tensor(0x12345678), *counter)
            word = int(drawn[column % 8 // 2])
            assert lanes[row, column] == (word >> 16 if column % 2 else word & 0xFFFF)


def test_rows_and_columns_do_not_depend_on_how_many_there_are() -> None:
    whole = rng.lanes(9, 50, 70)
    assert torch.equal(rng.lanes(9, 7, 70), whole[:7])
    assert torch.equal(rng.lanes(9, 50, 13), whole[:, :13])
    chosen = torch.tensor([0, 3, 8])
    assert torch.equal(rng.lanes(9, chosen, 70), whole[chosen])
    assert rng.lanes(9, 0, 5).shape == (0, 5)
    assert rng.lanes(9, 5, 0).shape == (5, 0)


def test_seeds_are_64_bits() -> None:
    seeds = [0, 1, -1, 2**32, 2**63 - 1, -(2**63)]
    drawn = [tuple(rng.lanes(seed, 1, 8).flatten().tolist()) for seed in seeds]
    assert len(set(drawn)) == len(seeds)
    for seed, lanes in zip(seeds, drawn, strict=True):
        assert tuple(rng.lanes(torch.tensor(seed), 1, 8).flatten().tolist()) == lanes


def test_threshold_ends() -> None:
    assert rng.mask(3, 40, 40, 0).all()
    assert rng.mask(3, 400, 400, 65535).float().mean() < 1e-3


@pytest.mark.parametrize("p", [0.0001, 0.1, 0.25, 0.5, 0.9])
def test_rate(p: float) -> None:
    rows, columns = 500, 1003
    threshold = round(65536 * p)
    dropped = 1 - rng.mask(11, rows, columns, threshold).double()
    rate, n = threshold / 65536, rows * columns
    assert within(dropped.mean().item(), rate, rate * (1 - rate) / n)
    for dim, size in ((0, rows), (1, columns)):  # each column's and each row's own rate, as a chi-squared sum
        z2 = (dropped.mean(dim) - rate).square() / (rate * (1 - rate) / size)
        freedom = n // size
        assert within(z2.sum().item(), freedom, 2 * freedom + freedom / (size * rate))


@pytest.mark.parametrize("apart", ["rows", "columns", "lane", "seeds", "high seeds"])
def test_independence(apart: str) -> None:
    """Neighbours agree as often as independent draws do."""
    p, n = 0.3, (600, 808)
    a = rng.mask(5, *n, round(65536 * p))
    other = {
        "rows": (a[1:], a[:-1]),
        "columns": (a[:, 1:], a[:, :-1]),
        "lane": (a[:, 8:], a[:, :-8]),
        "seeds": (a, rng.mask(6, *n, round(65536 * p))),
        "high seeds": (a, rng.mask(5 + 2**32, *n, round(65536 * p))),
    }
    first, second = (t.double() for t in other[apart])
    keep = 1 - round(65536 * p) / 65536
    covariance = ((first - keep) * (second - keep)).mean().item()
    assert within(covariance, 0.0, (keep * (1 - keep)) ** 2 / first.numel())


def test_lanes_are_uniform() -> None:
    """All 16 bits are fair, and pairs of bits agree half the time."""
    lanes = rng.lanes(77, 500, 1000).flatten()
    bits = torch.stack([(lanes >> i & 1).double() for i in range(16)])
    together = bits @ bits.T / lanes.numel()
    want = torch.full((16, 16), 0.25, dtype=torch.float64).fill_diagonal_(0.5)
    assert (together - want).abs().max() < SIGMAS * math.sqrt(0.25 / lanes.numel())


def test_a_skewed_mask_is_noticed() -> None:
    """The statistics above can fail: a generator whose columns repeat is far outside."""
    a = rng.mask(5, 600, 404, 19661).repeat(1, 2).double()
    keep = 1 - 19661 / 65536
    covariance = ((a[:, 404:] - keep) * (a[:, :404] - keep)).mean().item()
    assert not within(covariance, 0.0, (keep * (1 - keep)) ** 2 / a[:, 404:].numel())


def within(value: float, mean: float, variance: float) -> bool:
    return abs(value - mean) <= SIGMAS * math.sqrt(variance)


def test_several_seeds_give_a_mask_each() -> None:
    seeds = torch.tensor([[1, 2, 3], [4, 5, -6]])
    masks = rng.mask(seeds, 3, 20, 20000)
    for i in range(2):
        for j in range(3):
            assert torch.equal(masks[i, j], rng.mask(seeds[i, j], 3, 20, 20000))
