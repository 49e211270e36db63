"""Many callers: Python threads, forked and spawned workers."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm import AddNorm, add_norm, add_norm_stream, fuse

from .support.calls import routes, run
from .support.cases import EVERYTHING, Case, build
from .support.tolerance import same_bits

every_route = pytest.mark.parametrize("backend", routes())
CALLERS = 8


@every_route
def test_eight_python_threads(backend: str | None) -> None:
    """Forward and backward at once from eight threads: each gets the bits that it gets alone."""
    cases = [Case(**{**vars(EVERYTHING), "shape": (2, 40 + i, 129 + i), "row_scale": (2, 1)}) for i in range(CALLERS)]
    problems = [build(case) for case in cases]
    wanted = [run(problem, backend) for problem in problems]

    def many(i: int) -> list[dict[str, Tensor]]:
        return [run(problems[i], backend) for _ in range(6)]

    with ThreadPoolExecutor(CALLERS) as pool:
        for results, want in zip(pool.map(many, range(CALLERS)), wanted, strict=True):
            for got in results:
                for name, result in got.items():
                    same_bits(name, result, want[name])


@every_route
def test_one_module_in_eight_threads(backend: str | None) -> None:
    module = AddNorm(64, backend=backend).eval()
    inputs = [torch.randn(500, 64) for _ in range(CALLERS)]
    wanted = [module(x, x).detach() for x in inputs]
    with ThreadPoolExecutor(CALLERS) as pool:
        for got, want in zip(pool.map(lambda x: module(x, x).detach(), inputs), wanted, strict=True):
            same_bits("y", got, want)


@every_route
def test_backward_through_one_graph_from_two_threads(backend: str | None) -> None:
    x = torch.randn(200, 300, requires_grad=True)
    y = add_norm(x, x, backend=backend).square().sum()
    with ThreadPoolExecutor(2) as pool:
        grads = list(pool.map(lambda _: torch.autograd.grad(y, x, retain_graph=True)[0], range(6)))
    for grad in grads:
        same_bits("gradient", grad, grads[0])


def test_sums_that_cancel_to_a_denormal_do_not_depend_on_who_adds() -> None:
    """Two blocks of rows, of which one thread adds both or two threads one each."""
    x, dy = torch.randn(32, 1024), torch.zeros(32, 1024)
    dy[0], dy[16] = 1.5e-38, -1.4e-38
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            bias = torch.zeros(1024, requires_grad=True)
            add_norm(x, x, None, bias).backward(dy)
            found.append(bias.grad)
    finally:
        torch.set_num_threads(before)
    for grad in found:
        same_bits("bias", grad, found[0])


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")  # where the first call is one without gradients
def test_a_fused_model_that_some_threads_train_and_others_ask() -> None:
    """What one thread leaves to torch another wants back: no call fails, and in the end all norms are fused again."""
    x, start = torch.randn(2, 768), threading.Barrier(CALLERS)
    for _ in range(8):
        model = nn.Sequential(*[nn.LayerNorm(768) for _ in range(30)])

        def call(i: int, model: nn.Module = model) -> None:
            start.wait()
            for step in range(6):
                with torch.set_grad_enabled((i + step) % 2 == 0):
                    model(x)

        with fuse(model, mode="modules"):
            with ThreadPoolExecutor(CALLERS) as pool:
                list(pool.map(call, range(CALLERS)))
            model(x)
            for trained in (False, True):  # each is a change, after which all are looked at anew
                with torch.set_grad_enabled(trained):
                    model(x)
                assert {norm._compiled_call_impl is not None for norm in model} == {trained}
        assert all(norm._compiled_call_impl is None for norm in model)


def child(backend: str | None, tensors: list[Tensor], connection: Any) -> None:
    """Forward and backward; torch's own operations are avoided, which hang in a fork where they would be parallel."""
    x, dy, ds = tensors
    y, z = add_norm_stream(x, dropout_p=0.1, seed=3, norm="rms", backend=backend)
    (dx,) = torch.autograd.grad([y, z], x, [dy, ds])
    connection.send([hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for t in (y, z, dx)])
    connection.close()


@every_route
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_process(backend: str | None, method: str) -> None:
    """A worker that was forked after the parent's threads had run neither hangs nor differs."""
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    if method == "fork" and backend == "eager":
        pytest.skip("torch's own operations wait for the parent's threads in a fork")
    tensors = [torch.randn(600, 512) for _ in range(3)]
    tensors[0].requires_grad_()
    here, there = multiprocessing.Pipe()
    child(backend, tensors, there)
    want = here.recv()
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context(method)
    process = context.Process(target=child, args=(backend, tensors, there), daemon=True)
    process.start()
    try:
        assert here.poll(30), "the worker hangs"
        assert here.recv() == want
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
