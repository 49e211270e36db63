"""The Triton kernels without a GPU: interpreted, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm import add_norm, explain_dispatch
from addnorm.backends.triton import backend, launch

ROOT = Path(__file__).parents[1]
TABLES = (launch.FORWARD, launch.BACKWARD)
MOST = launch.MOST_COLUMNS
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def interpreted(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def test_interpreted_kernels_are_acceptable() -> None:
    done = interpreted("-m", "tests.support.interpreted")
    assert done.returncode == 0, done.stdout + done.stderr


def test_partial_sums_of_more_programs_than_are_added_side_by_side() -> None:
    """As a GPU with many multiprocessors leaves them; the interpreter plays one with few."""
    code = """
import torch
from addnorm.backends.triton import columns, run
partials = torch.randn(2, 2 * columns.TOGETHER.value + 9, columns.WIDTH.value + 5)
a, b = torch.full_like(partials[:, 0], torch.nan)
run.columns_launch("partials", ("a", "b"), *partials.shape[1:]).start({"partials": partials, "a": a, "b": b})
additions = 3 + columns.TOGETHER.value.bit_length()  # that a number goes through, each rounding by half a unit at most
allowed = additions * 2**-24 * partials.abs().sum(1)
assert ((torch.stack([a, b]).double() - partials.double().sum(1)).abs() <= allowed).all()
"""
    done = interpreted("-c", code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_interpreter_is_taken_by_name_alone() -> None:
    done = interpreted("-c", "import addnorm, torch; print(addnorm.explain_dispatch(torch.ones(2, 3)))")
    assert "triton takes" not in done.stdout
    assert "triton: yes, Triton interprets its kernels here" in done.stdout


def test_without_the_interpreter_cpu_tensors_are_refused() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter is on")
    with pytest.raises(ValueError, match="backend='triton' can not take this call: x is on cpu"):
        add_norm(torch.ones(2, 3), backend="triton")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'triton'", name="triton"), "triton is not installed: pip install triton"),
        (AttributeError("no attribute 'knobs'"), "triton does not load: AttributeError: no attribute 'knobs'"),
    ],
)
def test_a_missing_or_broken_triton_is_a_reason(error: Exception, reason: str, monkeypatch: Any) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "load", backend.load.__wrapped__)
    monkeypatch.setattr(backend.importlib, "import_module", broken)
    assert reason in str(explain_dispatch(torch.ones(2, 3)))
    assert add_norm(torch.ones(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="backend='triton' can not take this call"):
        add_norm(torch.ones(2, 3), backend="triton")


TRACE = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import addnorm

graphs = []
def keep(module, example):
    graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
    return module.forward

torch.version.cuda, torch.cuda.get_device_capability = "13.0", CAPABILITY
DRIVER
with FakeTensorMode(allow_non_fake_inputs=True):
    shapes = ((4, 64), (4, 64), (64,))
    x, residual, weight = (torch.empty(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    dispatch = addnorm.explain_dispatch(x, residual)
    print(dispatch)
    for backend in (None, dispatch.chosen):
        def block(x, residual, weight):
            return addnorm.add_norm_stream(x, residual, weight, dropout_p=0.1, backend=backend)
        torch._dynamo.reset()
        y, z = torch.compile(block, fullgraph=True, backend=keep)(x, residual, weight)
        assert (y.device.type, y.shape, y.dtype, z.dtype) == ("cuda", x.shape, x.dtype, x.dtype)
        torch.set_autocast_enabled("cuda", True)  # torch.autocast leaves it off where there is no GPU
        assert block(x, residual, weight)[0].dtype == torch.float32
        torch.set_autocast_enabled("cuda", False)
assert len(graphs) == 2, graphs
for graph in graphs:
    assert sum("addnorm.forward" in target for target in graph) == 1, graph
"""


def traced(capability: tuple[int, int], driver: str = "object()") -> str:
    """A call on CUDA tensors that are not there, explained and traced into one graph."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code = TRACE.replace("CAPABILITY", f"lambda device=None: {capability}")
    code = code.replace("DRIVER", f"import triton; triton.runtime.driver.set_active({driver})")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_call_on_a_gpu_is_traced_into_one_graph() -> None:
    assert "triton takes this call" in traced((9, 0))


def test_a_triton_that_does_not_start_is_refused_with_a_reason() -> None:
    """Without a C compiler there is no launcher; here it is the driver that is missing."""
    out = traced((9, 0), driver="None")
    assert "eager takes this call" in out
    assert "triton: no, triton does not start: RuntimeError: 0 active drivers" in out


def test_an_old_gpu_is_refused_with_a_reason() -> None:
    out = traced((7, 5))
    assert "eager takes this call" in out
    assert "triton: no, cuda:0 has compute capability (7, 5), the kernels want (8, 0)" in out


def test_a_row_of_too_many_columns_is_refused_with_a_reason() -> None:
    code = """
import addnorm, torch
from addnorm.backends.triton.launch import MOST_COLUMNS
for columns in (MOST_COLUMNS, MOST_COLUMNS + 1):
    print(addnorm.explain_dispatch(torch.ones(()).expand(1, columns)).support["triton"])
"""
    widest, wider = interpreted("-c", code).stdout.splitlines()
    assert "ok=True" in widest
    assert wider == f"Support(ok=False, reason='x has {MOST + 1} columns, the kernels take up to {MOST}')"


@pytest.mark.parametrize("width", [MOST, MOST - 1])
def test_no_row_is_split_into_more_parts_than_a_grid_has(width: int) -> None:
    for size, sums, extras in itertools.product((2, 4, 8), range(5), range(5)):
        row = launch.backward_for(width, size, sums)
        assert -(-width // (row.tiles(width, sums, extras) * row.block)) <= launch.PARTS


COMPILE = """
import triton
from addnorm.backends.triton.aot import compile_all, table, variants
spilled = 0 if triton.__version__.startswith("3.6.") else 24  # the table is made for 3.6
every = list(variants())
assert {(row, size) for row, size, *_ in every} == set(table())
chosen = [variant for i, variant in enumerate(every) if variant[3:] == ("layer", "plain") or i % 3 == 0]
for c in compile_all(90, chosen):
    assert c.spills <= spilled, f"spills: {c}"
    assert c.wide, f"other than 16-byte accesses: {c}"
    assert c.option != "plain" or c.asked <= c.resident, f"more programs than fit: {c}"
"""


def compiled(*command: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_row_of_the_launch_table_compiles_without_spills() -> None:
    """For sm_90, each row plain and some of its options; `make aot` compiles them all, for sm_80 and sm_100 too. No
    registers are spilled (a few by another Triton than the table is made for, outside the loops over columns), every
    access to an activation has 16 bytes, and a persistent grid asks for no more programs than fit."""
    compiled("-c", COMPILE)


def test_calls_at_the_edges_compile_as_they_are_launched() -> None:
    """Triton makes constants of arguments that are 1 and drops those that are None: another program each."""
    compiled("-m", "tests.support.launches")


def test_rows_of_the_launch_table_are_in_order_and_keep_rows_independent() -> None:
    """Where a row is read twice, it is alone in its program: no other row may decide how often it is read."""
    for tables in TABLES:
        assert set(tables) == {2, 4, 8}
        for rows in tables.values():
            widths = [row.width for row in rows]
            assert widths == sorted(set(widths))
            assert widths[-1] == launch.ANY
            for row in rows:
                kept = row.keep if isinstance(row, launch.Forward) else row.held > 0
                assert kept or row.rows == 1


@pytest.mark.parametrize("width", [5120, 7168, 12288])
def test_no_lane_idles_in_the_forward_at_widths_between_powers_of_two(width: int) -> None:
    for size in (2, 4):
        assert width % launch.forward_for(width, size).block == 0
