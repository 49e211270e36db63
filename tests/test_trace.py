"""What `torch.jit.trace` records, which passes its own check, and what the trace gives."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from addnorm import AddNorm, Stack

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # which "error" puts before the library's own filter
]
D = 24
MODULES = {
    "layer": lambda: AddNorm(D),
    "rms": lambda: AddNorm(D, norm="rms"),
    "branch": lambda: AddNorm(D, branch_bias=True, layer_scale=0.5, dropout=0.5, drop_path=0.5).eval(),
    "dyt": lambda: AddNorm(D, norm="dyt"),
}


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, D, requires_grad=True)


def gradients(module: nn.Module, x: Tensor, residual: Tensor, of: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(module(x, residual).square().sum(), [x, residual, *of.parameters()])


@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.parametrize("kind", MODULES)
def test_a_trace_passes_torchs_check_and_serves_training_and_inference(kind: str, graded: bool) -> None:
    module = MODULES[kind]()
    with torch.set_grad_enabled(graded):
        trace = torch.jit.trace(module, (data(3, 5), data(3, 5)))
    x, residual = data(2, 4, 7), data(2, 4, 7)  # not of the example's shape
    with torch.no_grad():
        assert torch.equal(trace(x, residual), module(x, residual))
    for ours, expected in zip(
        gradients(trace, x, residual, module), gradients(module, x, residual, module), strict=True
    ):
        assert torch.equal(ours, expected)


def test_a_stack_is_traced() -> None:
    stack = Stack([nn.Linear(D, D) for _ in range(2)], D)
    trace, x = torch.jit.trace(stack, data(3, 5)), data(7)
    assert torch.equal(trace(x), stack(x))


def test_a_trace_that_keeps_nothing_for_gradients_refuses_to_give_them() -> None:
    module = AddNorm(D).requires_grad_(False)
    trace = torch.jit.trace(module, (torch.randn(3, D), torch.randn(3, D)))
    with pytest.raises(RuntimeError, match="keeps what its backward needs"):
        trace(data(3), data(3))


def test_the_tracer_does_not_warn_of_the_checks() -> None:
    code = """
import warnings, torch
warnings.simplefilter("error", torch.jit.TracerWarning)
import addnorm
x = torch.randn(3, 8)
torch.jit.trace(addnorm.AddNorm(8, layer_scale=0.5), (x, x))
torch.jit.trace(addnorm.Residual(torch.nn.Linear(8, 8), 8, drop_path=0.5), x, check_trace=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
