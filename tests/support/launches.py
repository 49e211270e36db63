"""Calls at the edges, through Triton's own launching, for a GPU that is not there: `python -m tests.support.launches`.

Every kernel is specialised on its arguments and compiled for sm_90, as a first call on the card does it, and spills
nothing; what would be launched is recorded. The interpreter sees none of this. Then, that the second call launches the
same without Triton's search for the program, and that other rows and rates need no other programs.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from addnorm import add_norm_stream
from addnorm.backends.triton import backend, run, work
from addnorm.backends.triton.start import INT32
from addnorm.call import CALL_TENSORS, GRADIENT_TENSORS, OPERANDS, Call, Gradient, describe

from .cases import BF16, EVERYTHING, F16, F32, F64, NORMS, Case, build, options

WIDE = 131072
KERNELS = {"forward_kernel", "backward_kernel", "means_kernel", "columns_kernel"}
CASES = (
    Case(shape=(1, 1)), Case(shape=(64,), x=BF16), Case(shape=(1, 64), x=BF16, residual=BF16),
    Case(shape=(5, 8), x=F16), EVERYTHING, Case(shape=(3, 64), grads="y"),
    Case(shape=(3, 33), layout="padded"), Case(shape=(3, 40), layout="expanded"), Case(shape=(3, 40), layout="windows"),
    Case(shape=(3, 64), options=options(dropout_p=1e-5)), Case(shape=(3, 64), options=options(dropout_p=1e-9)),
    Case(shape=(3, 64), weight=False, bias=False, residual=None),
    Case(shape=(3, 64), grads="stream", branch_scale="0-d"),
    Case(shape=(3, 100), x=F64, residual=BF16, parameters=F16, branch_bias=True, options=options(dropout_p=0.5)),
    Case(shape=(1, WIDE), x=BF16, residual=BF16, row_scale=(1,), branch_scale="0-d", branch_bias=True),
)  # fmt: skip


# Mixes of options that spilled, while ptxas chose the registers.
TIGHT = (
    Case(shape=(2, 12288), x=BF16, residual=BF16, branch_bias=True),
    Case(shape=(2, 1024), x=F64, residual=F64, norm="rms", branch_bias=True, branch_scale="vector"),
    Case(shape=(2, 4096), norm="rms", weight=False, branch_bias=True, branch_scale="vector", row_scale=(2,), grads="y",
         options=options(dropout_p=0.1)),
    Case(shape=(2, 12288), norm="rms", options=options(dropout_p=0.1)),
    Case(shape=(2, 50001)), Case(shape=(2, 20001), row_scale=(2,), options=options(dropout_p=0.1)),
    Case(shape=(2, 50001), x=F16, residual=F16, branch_bias=True, branch_scale="0-d", row_scale=(2,),
         options=options(dropout_p=0.1)),
)  # fmt: skip
SHORT = (
    Case(shape=(5, 64), x=BF16, residual=BF16), Case(shape=(2, 3, 33)),
    Case(shape=(1, 5120), residual=None, bias=False),
    Case(shape=(9, 100), x=BF16, weight=False, bias=False, options=options(residual_scale=0.5, eps=1e-3)),
    Case(shape=(4, 40), branch_bias=True, branch_scale="vector", row_scale=(4,), options=options(weight_offset=1.0)),
    Case(shape=(4, 40), branch_scale="0-d", row_scale=(4,), options=options(out_dtype=F16, stream_dtype=F32)),
)  # fmt: skip
PLANNED = (
    *SHORT[:-1], Case(shape=(4, 64), options=options(dropout_p=0.1)),
    Case(shape=(4, 40), branch_bias=True, branch_scale="vector", row_scale=(4,), options=options(dropout_p=0.1)),
    Case(shape=(4, 64), weight=False, bias=False, grads="stream"), Case(shape=(4, 64), grads="y"),
    Case(shape=(2, WIDE), x=BF16, residual=BF16, branch_scale="vector", row_scale=(2,), branch_bias=True),
)  # fmt: skip
# What stands before the results: the kernel, the grid, the operands and the seed.
BEFORE = ("name", "hash", "x", "y", "z", *OPERANDS, "seed")


class Recorder:
    """A driver for one sm_90, which notes the kernels by name instead of launching them."""

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] = []
        self.hooks: tuple[Any, ...] = ()
        self.utils = SimpleNamespace(
            load_binary=load_binary,
            get_device_properties=lambda device: {"max_shared_mem": 232448},
        )
        self.get_current_device = lambda: None  # as the index of a CPU's device is
        self.get_current_stream = lambda device: 0
        self.get_current_target = lambda: GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: int, *arguments: Any) -> None:
            self.hooks = arguments[2:4]
            self.launched.append((metadata.name, metadata.hash, x, y, z, *arguments[4:]))

        return launch

    def taken(self) -> list[tuple[Any, ...]]:
        """All launches since the last time, without their memory."""
        return [tuple(map(likeness, launch)) for launch in self.take()]

    def take(self) -> list[tuple[Any, ...]]:
        self.launched, launched = [], self.launched
        return launched


def load_binary(name: str, cubin: bytes, *_: Any) -> tuple[int, ...]:
    """What loading gives, of a program that spills nothing: memory of a thread's own would be for that alone."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "STACK:0 " in said, f"{name} spills: {said}"
    return 1, 1, int(said.partition("REG:")[2].split()[0]), 0, 1024


def likeness(argument: Any) -> Any:
    """An argument without its memory."""
    if isinstance(argument, tuple):
        return tuple(map(likeness, argument))
    return (argument.dtype, argument.shape) if isinstance(argument, Tensor) else str(argument)


def carry_out(case: Case) -> None:
    """Forward and backward with everything kept and asked for."""
    call, gradient = both_ways(case)
    run.forward(call, keep_stream=False, keep_stats=False)
    run.backward(gradient)


def both_ways(case: Case) -> tuple[Call, Gradient]:
    """A forward call, which is carried out, and its backward, which is not."""
    problem = build(case)
    call = describe(**problem.arguments)
    y, z, stats = run.forward(call, keep_stream=True, keep_stats=True)
    assert z is not None
    assert stats is not None
    needs = [t is not None for t in call.operands.values()]
    residual_dtype = call.x.dtype if call.residual is None else call.residual.dtype
    return call, Gradient(
        dy=problem.dy, ds=problem.ds, z=z, stats=stats, x=call.x if any(needs[-2:]) else None, weight=call.weight,
        branch_bias=call.branch_bias, branch_scale=call.branch_scale, row_scale=call.row_scale, seed=call.seed,
        norm=call.norm, eps=call.eps, residual_scale=call.residual_scale, dropout_p=call.dropout_p,
        weight_offset=call.weight_offset, x_dtype=call.x.dtype, residual_dtype=residual_dtype,
        bias_dtype=y.dtype if call.bias is None else call.bias.dtype, needs=needs,
    )  # fmt: skip


def short_way_launches_the_same(recorder: Recorder) -> None:
    """A call that was made before is launched without being described: with the same program, grid and arguments."""
    for i, case in enumerate(SHORT):
        given = {k: v for k, v in build(Case(**{**vars(case), "norm": NORMS[i % 2]})).arguments.items() if k != "seed"}
        call, want = describe(**given), []
        run.forward(call, keep_stream=True, keep_stats=False)
        ordinary = recorder.take()
        add_norm_stream(**given, backend="triton")
        recorder.take()
        with mock.patch("addnorm.functional.describe", side_effect=AssertionError("described again")):
            results = add_norm_stream(**given, backend="triton")
        for launch in ordinary:
            want = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in launch]
        (got,) = (list(launch) for launch in recorder.take())
        written = slice(len(BEFORE), len(BEFORE) + 2)
        assert got[written] == [t.data_ptr() for t in results], f"{case}: writes elsewhere"
        got[written] = want[written] = []
        assert got == want, f"{case}: {got} is launched instead of {want}"


def plans_launch_the_same(recorder: Recorder) -> None:
    """Forward and backward, again and on other memory: the same programs and numbers, each pointer where it belongs."""

    def compare(given: Any, names: tuple[str, ...], results: tuple[str, ...], ordinary: Any, plan: Any) -> None:
        recorder.take()
        tensors = {name: getattr(given, name) for name in names}
        want = placed(recorder, {**tensors, **dict(zip(results, ordinary(), strict=True))})
        tensors = {name: None if t is None else t.clone() for name, t in tensors.items()}
        made = plan([None if t is None else t.data_ptr() for t in tensors.values()])
        got = placed(recorder, {**tensors, **dict(zip(results, made, strict=True))})
        assert got == want, f"{given}: {got} is launched instead of {want}"

    keep: Any = {"keep_stream": True, "keep_stats": True}
    for i, case in enumerate(PLANNED):
        call, gradient = both_ways(Case(**{**vars(case), "norm": NORMS[i % 2]}))
        compare(call, CALL_TENSORS, run.RESULTS, lambda c=call: run.forward(c, **keep), run.forward_plan(call, **keep))
        compare(gradient, GRADIENT_TENSORS, run.GRADIENTS, lambda g=gradient: run.backward(g).values(),
                run.backward_plan(gradient))  # fmt: skip


def placed(recorder: Recorder, memory: dict[str, Tensor | None]) -> list[Any]:
    """All launches since the last time, with names for memory; what has none was made for the launches alone."""
    names = {t.data_ptr(): name for name, t in memory.items() if t is not None}

    def name(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(name, argument))
        address = argument.data_ptr() if isinstance(argument, Tensor) else argument
        is_address = isinstance(argument, Tensor) or (isinstance(argument, int) and argument > INT32)
        return names.get(address, "made") if is_address else argument

    return [name(launch) for launch in recorder.take()]


def training_is_only_launched(recorder: Recorder) -> None:
    """The second step of a model is neither described nor cut up, and hands autograd what the kernels write."""
    made = [t.requires_grad_() for t in (torch.ones(4, 64), torch.ones(4, 64), torch.ones(64), torch.ones(64))]
    for step in range(2):
        with torch.enable_grad(), contextlib.ExitStack() as stack:
            for name in ("forward_work", "backward_work") if step else ():
                stack.enter_context(mock.patch.object(run, name, side_effect=AssertionError("cut up again")))
            y, stream = add_norm_stream(*made, dropout_p=0.1, backend="triton")
            grads = torch.autograd.grad((y, stream), made, (torch.ones_like(y), torch.ones_like(stream)))
        forward, backward, columns = recorder.take()
        assert [launch[0] for launch in (forward, backward, columns)] == [
            "forward_kernel", "backward_kernel", "columns_kernel"
        ]  # fmt: skip
        pointers = set(flat(forward + backward + columns))
        assert {t.data_ptr() for t in (*made, y, stream, *grads)} <= pointers


def flat(values: tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple):
            yield from flat(value)
        else:
            yield value.data_ptr() if isinstance(value, Tensor) else value


def as_many_programs_as_fit(recorder: Recorder) -> None:
    """The persistent grid is no larger than what runs at once: extras and float32 parameters take registers."""
    dropout = options(dropout_p=0.1)
    for width, extras, parameters, fit in (
        (1024, (), BF16, 8), (1024, dropout, BF16, 6), (6144, (), BF16, 2), (6144, (), F32, 1)
    ):  # fmt: skip
        case = Case(shape=(8 * 132, width), x=BF16, residual=BF16, parameters=parameters, options=extras)
        run.backward(both_ways(case)[1])
        grids = {name: x for name, _, x, *_ in recorder.take()}
        assert grids["backward_kernel"] == 132 * fit, (case, grids)


def plans_keep_no_memory() -> None:
    """A plan that is made while a CUDA graph is recorded would keep the graph's."""
    call, gradient = both_ways(EVERYTHING)
    before = tensors_alive()
    plans = run.forward_plan(call, keep_stream=True, keep_stats=True), run.backward_plan(gradient)
    assert None not in plans
    assert tensors_alive() == before


def tensors_alive() -> int:
    gc.collect()
    return sum(type(each) is Tensor for each in gc.get_objects())


def what_has_no_plan() -> None:
    """What the kernels alone do not finish."""
    for case in (Case(shape=(3, 64), branch_scale="0-d"), Case(shape=(3, 64), grads="stream")):
        assert run.backward_plan(both_ways(case)[1]) is None, case
    assert run.forward_plan(describe(torch.ones(0, 72)), keep_stream=True, keep_stats=True) is None


def launch_hooks_are_called(recorder: Recorder) -> None:
    """Those that a profiler hangs into Triton, by the launcher, to which they are given where there are any."""
    hook, x = mock.Mock(), torch.ones(3, 72)
    add_norm_stream(x, backend="triton")
    assert recorder.hooks == (None, None)
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        add_norm_stream(x, backend="triton")
        assert recorder.hooks[0] is knobs.runtime.launch_enter_hook
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)


def programs_are_loaded_where_they_run(recorder: Recorder) -> None:
    """On the operands' device, which need not be the current one."""

    @contextmanager
    def elsewhere(device: torch.device) -> Iterator[None]:
        with mock.patch.object(recorder, "get_current_device", return_value=1):
            yield

    loaded: list[int] = []
    with (
        mock.patch.object(work, "on", elsewhere),
        mock.patch.object(recorder.utils, "load_binary", lambda *given: loaded.append(given[-1]) or (1, 1, 0, 0, 1024)),
    ):
        assert run.forward_plan(describe(torch.ones(3, 72)), keep_stream=True, keep_stats=True) is not None
    assert loaded == [1], loaded


def main() -> None:
    recorder, names = Recorder(), set()
    driver.set_active(recorder)  # pyright: ignore[reportArgumentType]
    with mock.patch.object(run, "processors", return_value=132):
        for case in (*(Case(**{**vars(case), "norm": NORMS[i % 2]}) for i, case in enumerate(CASES)), *TIGHT):
            try:
                carry_out(case)
            except Exception as error:
                raise AssertionError(f"{case} does not compile") from error
            first = recorder.taken()
            names |= {name for name, *_ in first}
            with mock.patch.object(JITFunction, "run", side_effect=AssertionError("looked up by Triton again")):
                carry_out(case)
            assert recorder.taken() == first, f"{case}: launched otherwise the second time"
        assert names == KERNELS
        with mock.patch.object(backend, "obstacle", return_value=""), torch.no_grad():
            short_way_launches_the_same(recorder)
            plans_launch_the_same(recorder)
            training_is_only_launched(recorder)
            as_many_programs_as_fit(recorder)
            plans_keep_no_memory()
            what_has_no_plan()
            launch_hooks_are_called(recorder)
            programs_are_loaded_where_they_run(recorder)
        recorder.take()
        for rows, p in ((1, 0.1), (2, 0.5), (16, 1e-5), (1000, 0.25)):
            carry_out(Case(shape=(rows, 64), options=options(dropout_p=p)))
        programs = [name for name, _ in {(name, program) for name, program, *_ in recorder.taken()}]
        assert sorted(programs) == ["backward_kernel", "columns_kernel", "forward_kernel", "forward_kernel"], programs


if __name__ == "__main__":
    main()
