"""`Monitor`: what it logs is right, when it does, and that it leaves nothing behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import addnorm
from addnorm import Monitor

from .support.faulty import WIDTH, Post, Pre
from .support.kernels import needs_kernels

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 4, WIDTH), "attention_mask": MASK}


def steps(model: nn.Module, count: int) -> list[Tensor]:
    torch.manual_seed(4)
    outputs = []
    for _ in range(count):
        model.zero_grad()
        output = model(**batch())
        output.square().sum().backward()
        outputs.append(output.detach())
    return outputs


def test_what_is_logged_is_right() -> None:
    model, seen = Pre(2), []
    data = batch()
    with Monitor(model, every=1, log=seen.append):
        y = model(**data)
        (y**3).sum().backward()
    (numbers,) = seen
    site = model.sites[0]
    f = site.branch(data["x"])
    z = data["x"] + f
    z.retain_grad()
    second = z + model.sites[1].branch(site.norm(z))
    (model.sites[1].norm(second) ** 3).sum().backward()
    real = MASK.bool()
    expected = {
        "residual_ratio": (f.norm(dim=-1) / data["x"].norm(dim=-1))[real].mean(),
        "sigma": (z.var(-1, correction=0) + site.norm.eps).sqrt()[real].mean(),
        "amax": z.abs().max(),
        "nonfinite": torch.tensor(0),
        "gamma_norm": site.norm.weight.norm(),
        "gradient_norm": z.grad.norm(),
        "gamma_gradient_norm": site.norm.weight.grad.norm() / 2,  # the second backward added the same
    }
    assert numbers["step"] == 0
    assert {name for name in numbers if name.startswith("sites.0")} == {f"sites.0.norm/{name}" for name in expected}
    for name, value in expected.items():
        assert numbers[f"sites.0.norm/{name}"] == pytest.approx(value.item(), rel=1e-5), name


@needs_kernels
@pytest.mark.parametrize("how", ["plain", "fused", "compiled", "compiled in place"])
def test_sampled_steps_say_the_same_and_the_rest_is_untouched(how: str) -> None:
    model, seen = Post(2), []
    before = steps(copy.deepcopy(model), 5)
    outer: Any = model
    if how == "fused":
        addnorm.fuse(model)
    elif how == "compiled":
        outer = torch.compile(model, backend="aot_eager")
    elif how == "compiled in place":
        model.compile(backend="aot_eager")
    place = outer.__dict__.get("_compiled_call_impl")
    with Monitor(outer, every=2, log=seen.append):
        after = steps(outer, 5)
        assert [numbers["step"] for numbers in seen] == [0, 2, 4]
        assert all("sites.1.norm/gradient_norm" in numbers for numbers in seen)
        outer.eval()(**batch())
        outer.train()
        with torch.no_grad():
            outer(**batch())
        assert len(seen) == 3
    assert outer.__dict__.get("_compiled_call_impl") is place
    assert ("_compiled_call_impl" in outer.__dict__) == (place is not None)
    for a, b in zip(after, before, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_pass_without_a_backward_is_logged_at_the_end() -> None:
    model, seen = Pre(1), []
    monitor = Monitor(model, every=1, log=seen.append)
    model(**batch())
    assert seen == []
    monitor.close()
    monitor.close()
    assert len(seen) == 1
    assert "sites.0.norm/amax" in seen[0]
    assert "sites.0.norm/gradient_norm" not in seen[0]


@pytest.mark.parametrize("together", [True, False])
def test_gradients_are_those_of_the_pass_that_is_logged(together: bool) -> None:
    """Two passes are sampled before any backward: the first is logged without one."""
    model, seen, first, second = Post(2), [], batch(), batch()
    with Monitor(model, every=1, log=seen.append):
        (model(**second) ** 3).sum().backward()
        losses = [(model(**first) ** 3).sum(), 100 * (model(**second) ** 3).sum()]
        for each in [losses[0] + losses[1]] if together else losses:
            each.backward()
    alone, early, late = seen
    assert [numbers["step"] for numbers in seen] == [0, 1, 2]
    for name in ("sites.0.norm/gradient_norm", "sites.1.norm/gradient_norm"):
        assert name not in early
        assert late[name] == pytest.approx(100 * alone[name])


def test_a_batch_without_tokens_does_not_end_the_training() -> None:
    model, seen = Post(1), []
    with Monitor(model, every=1, log=seen.append):
        model(torch.randn(0, 4, WIDTH)).sum().backward()
        model(**batch()).sum().backward()
    empty, full = seen
    assert empty["sites.0.norm/nonfinite"] == 0
    assert full.keys() - empty.keys() == {f"sites.0.norm/{name}" for name in ("residual_ratio", "sigma", "amax")}


def test_a_monitor_that_saw_no_training_says_so() -> None:
    model, seen = Pre(2).eval(), []
    monitor = Monitor(model, every=1, log=seen.append)
    model(**batch())
    model.train()
    with torch.no_grad():
        model(**batch())
    with pytest.warns(UserWarning, match=r"logged nothing: .* of 2 calls none was one \(model.train\(\), no"):
        monitor.close()
    monitor.close()  # says it once
    assert "_compiled_call_impl" not in model.__dict__
    monitor = Monitor(model, every=1, log=seen.append)
    with torch.no_grad():
        model(**batch())
    with pytest.raises(UserWarning, match="logged nothing"):  # where warnings are errors
        monitor.close()
    assert "_compiled_call_impl" not in model.__dict__
    with Monitor(model, every=1, log=seen.append):
        model(**batch()).sum().backward()
    assert len(seen) == 1


def test_nan_is_counted() -> None:
    model, seen = Pre(1), []
    data = batch()
    data["x"][0, 0, :3] = torch.nan
    with Monitor(model, every=1, log=seen.append):
        model(**data)
    assert seen[0]["sites.0.norm/nonfinite"] == WIDTH  # through the branch into every feature of the token


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, 1, print), TypeError, "model must be a torch.nn.Module, got int"),
        ((Pre(1), 0, print), ValueError, "every must be an integer >= 1, got 0"),
        ((Pre(1), 2.5, print), ValueError, "every must be an integer >= 1, got 2.5"),
        ((Pre(1), 1, "wandb"), TypeError, "log must be callable, got str"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    model, every, log = arguments
    with pytest.raises(error, match=message):
        Monitor(model, every=every, log=log)


def test_a_model_without_sites_is_refused_at_its_first_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    seen: list[dict[str, float]] = []
    monitor, refused = Monitor(model, every=1, log=seen.append), "no Add & Norm site found in Sequential: 1: "
    with monitor, pytest.raises(ValueError, match=refused):
        model(torch.randn(2, 4))
    assert seen == []
    model(torch.randn(2, 4))  # as it was


def test_a_second_monitor_is_refused() -> None:
    model = Pre(1)
    with Monitor(model, every=1, log=[].append):
        with pytest.raises(ValueError, match="has a monitor already"):
            Monitor(model, every=1, log=print)
        model(**batch())


def test_a_hook_that_comes_late_is_heard_in_a_sampled_pass() -> None:
    model, data = Pre(1), batch()
    with Monitor(model, every=1, log=[].append):
        plain = model(**data)
        model.sites[0].norm.register_forward_hook(lambda *arguments: 2 * arguments[2])
        assert not torch.equal(model(**data), plain)
        assert torch.allclose(model(**data), model._call_impl(**data), atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("first", ["undo", "close"])
def test_a_fused_model_may_be_undone_under_its_monitor(first: str) -> None:
    model, seen = Post(1), []
    handle = addnorm.fuse(model)
    monitor = Monitor(model, every=1, log=seen.append)
    assert "(undone)" not in repr(handle)
    assert addnorm.fuse(model) is handle
    model(**batch())
    ends = {"undo": handle.undo, "close": monitor.close}
    ends.pop(first)()
    assert ("(undone)" in repr(handle)) == (first == "undo")
    assert "_compiled_call_impl" in model.__dict__
    model(**batch())
    (last,) = ends.values()
    last()
    assert "(undone)" in repr(handle)
    assert "_compiled_call_impl" not in model.__dict__
    assert len(seen) == 1 + (first == "undo")
    model.compile(backend="eager")  # of a fused model an error


def test_a_monitored_model_is_not_fused() -> None:
    model = nn.Sequential(Pre(1))
    for part, name in ((model, "model"), (model[0], "the model's part 0")):
        with Monitor(part, every=1, log=[].append):
            with pytest.raises(ValueError, match=f"{name} has an addnorm.Monitor"):
                addnorm.fuse(model)
            model(batch()["x"])
    addnorm.fuse(model).undo()


def test_a_sampled_pass_that_fails_is_not_logged() -> None:
    class Failing(Post):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            y = super().forward(x, attention_mask)
            return y.view(-1, 3 if len(x) == 1 else y.shape[-1])

    model, seen = Failing(2), []
    with Monitor(model, every=1, log=seen.append):
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 4, WIDTH), MASK[:1])
        model(**batch())
    assert [numbers["step"] for numbers in seen] == [1]


def test_a_log_that_fails_leaves_no_monitor_behind() -> None:
    def full(numbers: dict[str, float]) -> None:
        raise OSError("no space left")

    model = Pre(1)
    before = dict(model.__dict__)
    with pytest.raises(OSError, match="no space left"), Monitor(model, every=1, log=full):
        model(**batch())
    assert model.__dict__ == before


def test_a_branch_of_nothing_upon_a_stream_of_nothing() -> None:
    """As `inspect` has it: 0."""
    model, seen = Pre(1), []
    for p in model.sites[0].parameters():
        nn.init.zeros_(p)
    with Monitor(model, every=1, log=seen.append):
        model(torch.zeros(2, 4, WIDTH), MASK)
    assert seen[0]["sites.0.norm/residual_ratio"] == 0


def test_a_weight_that_is_computed_has_a_gradient() -> None:
    """Here each layer's weight times a factor of its depth."""
    seen: list[dict[str, float]] = []
    stack = addnorm.Stack([nn.Linear(8, 8) for _ in range(4)], 8, placement="layernorm_scaling")
    with Monitor(stack, every=1, log=seen.append):
        (stack(torch.randn(2, 5, 8)) ** 3).sum().backward()
    sites = {name.partition("/")[0] for name in seen[0] if "/" in name}
    assert sites
    assert all(seen[0][f"{site}/gamma_gradient_norm"] > 0 for site in sites)


@pytest.mark.parametrize("norm", ["layer", "rms", "prms", "scale"])
def test_sigma_is_what_the_norm_divides_by(norm: str) -> None:
    class Summed(nn.Module):
        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return addnorm.add_norm(x, residual, norm=norm)

    model, seen, (x, residual) = Summed(), [], torch.randn(2, 3, 5, 64, dtype=torch.float64)
    with Monitor(model, every=1, log=seen.append):
        y = model(x.requires_grad_(), residual)
    z = x + residual
    centred = z - z.mean(-1, keepdim=True) if norm == "layer" else z
    sigma = (centred / y)[..., 0]
    assert seen[0]["(the model itself)/sigma"] == pytest.approx(sigma.mean().item())
    (site,) = addnorm.inspect(model, [(x.detach(), residual)]).sites
    assert site.details["sigma"]["tokens"]["max"] == pytest.approx(sigma.square().sub(1e-5).sqrt().max().item())


def test_what_divides_by_nothing_has_no_sigma() -> None:
    class Bounded(nn.Module):
        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return addnorm.add_norm(x, residual, norm="dyt")

    model, seen, (x, residual) = Bounded(), [], torch.randn(2, 3, 5, 64)
    with Monitor(model, every=1, log=seen.append):
        model(x.requires_grad_(), residual)
    assert "(the model itself)/amax" in seen[0]
    assert "(the model itself)/sigma" not in seen[0]
    (site,) = addnorm.inspect(model, [(x.detach(), residual)]).sites
    assert (site.values["sigma"], site.values["conditioning"]) == (None, None)
