"""Each claim's numbers lie in their bands for five seeds, and the bands reject what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from addnorm import cli
from addnorm.claims import (
    CLAIMS,
    affine,
    copy_task,
    explain,
    identity_path,
    padding,
    per_token,
    placement,
    value_range,
    vanishing,
)
from addnorm.claims.base import Claim, generator
from addnorm.plot import Control, Curve, Plot

TRAINED = ("adaptation", "speed")  # each run trains five models, and states the worst: half a minute for all seeds
SEEDS = range(5)


@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS.values() if claim.name not in TRAINED], ids=lambda c: c.name
)
def test_numbers_lie_in_their_bands_for_five_seeds(claim: Claim) -> None:
    for seed in SEEDS:
        assert [number for number in claim.run(seed).numbers if not number.holds] == []


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])])
@pytest.mark.parametrize("name", TRAINED)
def test_what_is_trained_lies_in_its_bands(name: str, seed: int) -> None:
    assert [number for number in CLAIMS[name].run(seed).numbers if not number.holds] == []


def test_the_table_is_in_order_and_complete() -> None:
    assert [claim.number for claim in CLAIMS.values()] == list(range(1, 15))
    assert [claim.name for claim in CLAIMS.values()] == list(CLAIMS)
    for claim in CLAIMS.values():
        assert claim.text
        assert claim.truth
        assert claim.formula
        assert claim.source


def test_the_same_seed_gives_the_same_numbers_and_leaves_torchs_generator() -> None:
    state = torch.get_rng_state()
    for name in ("composition", "padding", "identity-path"):
        assert CLAIMS[name].run(3) == CLAIMS[name].run(3)
    assert torch.equal(state, torch.get_rng_state())


def test_explaining_leaves_torchs_threads() -> None:
    before, seen = torch.get_num_threads(), []
    explain([CLAIMS["range"]], lambda *_: seen.append(torch.get_num_threads()))
    assert seen  # the progress is told before the experiment, on the one thread that it has
    assert (seen[0], torch.get_num_threads()) == (1, before)


def unbiased(x: Tensor, *_: object, eps: float) -> Tensor:
    """A norm that divides by d - 1."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt()


def unshifted(w: Tensor, b: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """A fold that forgets beta."""
    return w * gamma, b


def counting_pads(x: Tensor, tokens: int | None = None) -> Tensor:
    """A masked BatchNorm that is not masked."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + padding.EPS).sqrt()


def min_max(x: Tensor, *_: object, eps: float) -> Tensor:
    """What the wrong claim describes."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return (x - low) / (high - low + eps)


def halved(weights: Tensor, sigma2: float, identity: bool) -> Tensor:
    """A gradient through a skip of 1/2."""
    return through(weights, sigma2, False) if not identity else through(weights / 2, sigma2, True)


through = vanishing.through


def unnormed(x: Tensor, *_: object, eps: float) -> Tensor:
    """No norm at all."""
    return x


def normed_stream(f: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A Pre-LN whose skip carries the normalised sum."""
    y = identity_path.add_norm(f, x)
    return y, y


MUTANTS: list[tuple[str, object, str, Callable[..., object]]] = [
    ("range", value_range, "add_norm", unbiased),
    ("range", value_range, "add_norm", min_max),
    ("affine", affine, "fold", unshifted),
    ("padding", padding, "batch_norm", counting_pads),
    ("vanishing", vanishing, "through", halved),
    ("vanishing", vanishing, "add_norm", unnormed),
    ("identity-path", identity_path, "add_norm_stream", normed_stream),
]


@pytest.mark.parametrize(
    ("name", "module", "attribute", "wrong"), MUTANTS, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_what_is_wrong_falls_outside(
    name: str, module: object, attribute: str, wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, attribute, wrong)
    assert not CLAIMS[name].run(0).holds


def test_batch_norm_fixes_what_layer_norm_leaves_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_token, "add_norm", lambda x, eps: per_token.batch_norm(x))
    assert not CLAIMS["per-token"].run(0).numbers[-1].holds


def test_a_placement_that_does_not_train_falls_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-LN as norms without skips: its number may not pass for learnt."""
    monkeypatch.setitem(copy_task.PLACEMENTS, "Pre-LN", copy_task.norm_only)
    final = copy_task.smooth(copy_task.train(12, 0)["Pre-LN"])[-1]
    assert not placement.solved("Pre-LN", 12, final).holds
    assert placement.stuck("Pre-LN", 12, final).holds


def test_the_models_of_the_copy_task_share_nothing() -> None:
    """Each learns as it does beside any others: one's loss has no gradient in another's weights."""
    weights = copy_task.initial(2, generator(0))
    tokens = torch.randint(copy_task.VOCABULARY, (5 * copy_task.RUNS, copy_task.BATCH, copy_task.LENGTH))
    copy_task.logits(weights, tokens)[7].sum().backward()
    for weight in (*weights[:3], *(each for layer in weights.layers for each in layer)):
        assert weight.grad is not None
        touched = weight.grad.flatten(1).abs().sum(1) > 0
        assert touched.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Plot("", (1,), (Curve("a", ((1,), (2,))),)), "has 2 frames, the controls 1"),
        (lambda: Plot("", (1, 2), (Curve("a", ((1,),)),)), "not of x's length, 2"),
        (lambda: Plot("", (1,), (), controls=(Control("a", (1, 2), 2),)), "starts at 2, of 2"),
    ],
)
def test_a_plot_that_does_not_fit_is_refused(make: Callable[[], Plot], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize("wanted", ["affine", "12"])
def test_json_is_the_claims_and_nothing_else(wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", wanted, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["claims"]
    (claim,) = found["claims"]
    assert (claim["name"], claim["verdict"], claim["holds"]) == ("affine", "wrong", True)
    assert all(
        {"name", "value", "expected", "low", "high", "why", "holds"} <= number.keys() for number in claim["numbers"]
    )


def test_the_terminal_shows_a_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "history"]) == 0
    assert "Highway" in capsys.readouterr().out


def test_an_unknown_claim_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "magic"]) == 2
    error = capsys.readouterr().err
    assert "there is no claim 'magic'" in error
    assert all(name in error for name in CLAIMS)
