from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from addnorm import AddNorm, add_norm, add_norm_stream
from addnorm.norms import NORMS

from .support.calls import routes
from .support.tolerance import same_bits

D = 24


def data(*shape: int) -> Tensor:
    return torch.randn(*shape or (3, 5, D))


def randomised(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        nn.init.normal_(p, 1.0, 0.3)
    return module


TORCH = {
    "layer": (lambda: nn.LayerNorm(D), {}),
    "layer without bias": (lambda: nn.LayerNorm(D, bias=False), {"bias": False}),
    "layer without affine": (lambda: nn.LayerNorm(D, elementwise_affine=False), {"affine": False}),
    "rms": (lambda: nn.RMSNorm(D, eps=1e-5), {"norm": "rms"}),
    "rms without affine": (lambda: nn.RMSNorm(D, eps=1e-5, elementwise_affine=False), {"norm": "rms", "affine": False}),
}


@pytest.mark.parametrize("kind", TORCH)
def test_state_dicts_load_strictly_both_ways(kind: str) -> None:
    make, given = TORCH[kind]
    theirs, ours = randomised(make()), AddNorm(D, **given)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict(), strict=True)
    make().load_state_dict(ours.state_dict(), strict=True)
    x, residual = data(), data()
    torch.testing.assert_close(ours(x, residual), theirs(x + residual))
    torch.testing.assert_close(ours(x), theirs(x))


def test_bias_by_default() -> None:
    assert AddNorm(D).bias is not None
    assert AddNorm(D, norm="rms").bias is None
    assert AddNorm(D, norm="rms", bias=True).bias is not None
    assert AddNorm(D, bias=False).bias is None
    assert AddNorm(D, affine=False, bias=True).bias is None


def test_initial_values() -> None:
    module = AddNorm(D, branch_bias=True, layer_scale=0.1, weight_offset=1.0)
    want = {"weight": 0.0, "bias": 0.0, "branch_bias": 0.0, "layer_scale": 0.1}
    assert set(dict(module.named_parameters())) == set(want)
    for name, value in want.items():
        assert torch.equal(getattr(module, name), torch.full((D,), value))
    assert torch.equal(AddNorm(D).weight, torch.ones(D))  # pyright: ignore[reportArgumentType]
    randomised(module)
    module.reset_parameters()
    assert torch.equal(module.layer_scale, torch.full((D,), 0.1))  # pyright: ignore[reportArgumentType]


def test_the_same_generator_state_as_layer_norm() -> None:
    """Making the module draws nothing: a model built with it is initialised like one with LayerNorm."""
    state = torch.get_rng_state()
    AddNorm(D, branch_bias=True, layer_scale=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("backend", routes())
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_forward_and_stream_are_the_calls(norm: str, backend: str | None) -> None:
    module = AddNorm(
        D, norm=norm, eps=1e-3, dropout=0.3, branch_bias=True, layer_scale=0.5, residual_scale=1.5,
        weight_offset=1.0, out_dtype=torch.float64, stream_dtype=torch.bfloat16, backend=backend,
    )  # fmt: skip
    randomised(module)
    x, residual = data(), data()
    given = {
        "norm": norm, "eps": 1e-3, "dropout_p": 0.3, "branch_bias": module.branch_bias, "residual_scale": 1.5,
        "branch_scale": module.layer_scale, "weight_offset": 1.0, "out_dtype": torch.float64,
        "stream_dtype": torch.bfloat16, "backend": backend,
    }  # fmt: skip
    for training in (True, False):
        module.train(training)
        torch.manual_seed(3)
        y = module(x, residual)
        torch.manual_seed(3)
        y2, stream = module.stream(x, residual)
        torch.manual_seed(3)
        want = add_norm_stream(x, residual, module.weight, module.bias, **given, training=training)
        same_bits("y", y, want[0])
        same_bits("y with the stream", y2, want[0])
        same_bits("stream", stream, want[1])


@pytest.mark.parametrize("backend", routes())
def test_drop_path_drops_whole_samples(backend: str | None) -> None:
    module = AddNorm(D, drop_path=0.25, affine=False, backend=backend)
    x, residual = torch.ones(4000, 3, D), torch.zeros(4000, 3, D)
    _, stream = module.stream(x, residual)
    per_sample = stream.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    torch.testing.assert_close(per_sample[:, 0].unique(), torch.tensor([0.0, 1 / 0.75]))
    dropped = (per_sample[:, 0] == 0).double().mean().item()
    assert abs(dropped - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    module.eval()
    same_bits("in eval", module.stream(x, residual)[1], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_drop_path_keeps_is_scaled_exactly(dtype: torch.dtype) -> None:
    """1/0.9 is not rounded to half precision, where the mean would be 0.16 % off."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    module = AddNorm(D, drop_path=0.1, stream_dtype=exact, dtype=dtype)
    _, stream = module.stream(torch.ones(200, D, dtype=dtype), torch.zeros(200, D, dtype=dtype))
    assert torch.equal(stream.unique(), torch.tensor([0.0, 1 / 0.9], dtype=exact))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None), "x must be a torch.Tensor, got NoneType"),
        ((torch.ones(2, D, dtype=torch.int64),), "x must be torch.float64, .*got torch.int64"),
        ((torch.ones(()),), r"x has .*\(\)"),
        ((torch.ones(2, D + 1),), r"x.* \(2, 25\)"),
        ((torch.ones(2, D), torch.ones(3, D)), r"residual has shape \(3, 24\)"),
    ],
)
def test_bad_input_is_named_and_nothing_is_drawn(given: tuple[Any, ...], message: str, affine: bool) -> None:
    for module in (AddNorm(D, drop_path=0.1, affine=affine), AddNorm(D, dropout=0.1, affine=affine)):
        state = torch.get_rng_state()
        for call in (module, module.stream):
            with pytest.raises((TypeError, ValueError), match=message):
                call(*given)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_backend_that_can_not_draws_nothing() -> None:
    module, state = AddNorm(D, drop_path=0.1, norm="dyt", backend="cpu"), torch.get_rng_state()
    with pytest.raises(ValueError, match="backend='cpu' can not take this call"):
        module(torch.ones(2, D))
    assert torch.equal(torch.get_rng_state(), state)


def test_drop_path_of_one_vector() -> None:
    module = AddNorm(D, drop_path=0.5)
    streams = {module.stream(torch.ones(D), torch.zeros(D))[1].unique().item() for _ in range(40)}
    assert streams == {0.0, 2.0}


@pytest.mark.parametrize("backend", routes())
def test_trains_like_the_composite(backend: str | None) -> None:
    """Gradients of every parameter equal those of nn.LayerNorm(residual + scale * (x + bias))."""
    ours = AddNorm(D, branch_bias=True, layer_scale=0.1, backend=backend, dtype=torch.float64)
    randomised(ours)
    norm = nn.LayerNorm(D, dtype=torch.float64)
    norm.load_state_dict({k: v for k, v in ours.state_dict().items() if k in ("weight", "bias")})
    x, residual = data().double(), data().double()
    leaves = [p.detach().clone().requires_grad_() for p in (ours.branch_bias, ours.layer_scale) if p is not None]
    want = norm(residual + leaves[1] * (x + leaves[0]))
    got = ours(x, residual)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    for p, q in zip((ours.weight, ours.bias, ours.branch_bias, ours.layer_scale),
                    (norm.weight, norm.bias, *leaves), strict=True):  # fmt: skip
        assert p is not None
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_whole(copied) -> None:
    module = randomised(AddNorm(D, norm="rms", layer_scale=0.1, branch_bias=True, dropout=0.1, eps=1e-4))
    other = copied(module.eval())
    x, residual = data(), data()
    same_bits("y of the copy", other(x, residual), module(x, residual))
    assert repr(other) == repr(module)
    with torch.no_grad():
        other.weight.add_(1)
    assert not torch.equal(other.weight, module.weight)  # pyright: ignore[reportArgumentType]


class Computed(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.0  # a tensor, no nn.Parameter


def parametrised(module: nn.Module, x: Tensor) -> Tensor:
    for name, _ in list(module.named_parameters()):
        parametrize.register_parametrization(module, name, Computed())
    return module(x)


def pruned(module: nn.Module, x: Tensor) -> Tensor:
    for name, _ in list(module.named_parameters()):
        prune.identity(module, name)
    return module(x)


SWAPPED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "functional_call": lambda module, x: torch.func.functional_call(
        module, {name: p.detach() for name, p in module.named_parameters()}, (x,)
    ),
    "parametrize": parametrised,
    "prune": pruned,
    "export": lambda module, x: torch.export.export(module, (x,), strict=False).module()(x),
}


@pytest.mark.parametrize("way", SWAPPED)
@pytest.mark.parametrize("norm", NORMS)
def test_parameters_may_be_swapped_for_tensors(norm: str, way: str) -> None:
    module, x = randomised(AddNorm(D, norm=norm)), data()
    torch.testing.assert_close(SWAPPED[way](copy.deepcopy(module), x), module(x))


def test_results_can_be_deepcopied_and_pickled_when_detached() -> None:
    y = AddNorm(D)(data(), data()).detach()
    same_bits("pickled y", pickle.loads(pickle.dumps(copy.deepcopy(y))), y)


def test_moves_like_any_module() -> None:
    module = AddNorm(D, branch_bias=True).to(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in module.parameters())
    assert module(data().bfloat16(), data().bfloat16()).dtype == torch.bfloat16
    meta = AddNorm(D, device="meta")
    assert meta(data().to("meta"), data().to("meta")).device.type == "meta"
    empty = meta.to_empty(device="cpu")
    empty.reset_parameters()
    same_bits("after to_empty", empty(torch.ones(2, D)), AddNorm(D)(torch.ones(2, D)))


def test_repr_names_what_matters() -> None:
    assert repr(AddNorm(D, norm="rms", dropout=0.1)) == (
        "AddNorm(24, norm='rms', eps=1e-05, affine=True, bias=False, dropout=0.1)"
    )


def test_wrong_width_is_named() -> None:
    with pytest.raises(ValueError, match="weight has shape"):
        AddNorm(D)(torch.ones(2, D + 1))


def test_residual_may_be_left_out() -> None:
    x = data()
    same_bits("plain norm", AddNorm(D)(x), add_norm(x, None, torch.ones(D), torch.zeros(D)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 8.0}, TypeError, "d_model must be an int, got float"),
        ({"d_model": 0}, ValueError, "d_model must be at least 1, got 0"),
        ({"affine": None}, TypeError, "affine must be True or False, got NoneType"),
        ({"branch_bias": 1}, TypeError, "branch_bias must be True or False, got int"),
        ({"layer_scale": "a"}, TypeError, "layer_scale must be a number, got str"),
        ({"out_dtype": "half"}, TypeError, "out_dtype must be None"),
        ({"dtype": torch.int8}, ValueError, "dtype must be None, torch.float64, .*got torch.int8"),
        ({"dtype": torch.complex64}, ValueError, "dtype must be None, torch.float64, .*got torch.complex64"),
        ({"backend": "gpu"}, ValueError, "backend='gpu' is unknown; there are: 'cpu', 'triton', 'eager'"),
    ],
)
def test_bad_options_are_refused_when_the_module_is_made(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AddNorm(**{"d_model": 8} | options)


def test_repr_names_what_differs_from_the_default() -> None:
    assert repr(AddNorm(8)).count("residual_scale") == 0
    text = repr(AddNorm(8, residual_scale=2.0, layer_scale=0.1, branch_bias=True, backend="eager"))
    assert "branch_bias=True, layer_scale=0.1, residual_scale=2.0, backend='eager'" in text
