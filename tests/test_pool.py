"""Large outputs come from memory that is kept between calls: never while anything still looks at it, and never much."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

import addnorm
from addnorm.backends.native import EXTENSION

pytestmark = pytest.mark.skipif(EXTENSION is None or sys.platform != "linux", reason="the pool is the extension's")

LARGE = (1100, 1000)  # float32: well above the size from which the pool serves


def add_norm(shape: tuple[int, int] = LARGE, value: float = 1.0) -> Tensor:
    """bias alone, since a constant row normalises to 0: every element of y is `value`."""
    x = torch.ones(shape[-1]).expand(shape)
    with torch.no_grad():
        return addnorm.add_norm(x, x, None, torch.full(shape[-1:], float(value)))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_comes_back() -> None:
    y = add_norm()
    address = y.data_ptr()
    del y
    assert add_norm().data_ptr() == address


def test_memory_in_use_is_left_alone() -> None:
    views = [add_norm(value=v)[3:, ::2] for v in range(8)]
    for value, view in enumerate(views):
        assert bool((view == value).all())


def test_other_sizes_do_not_take_a_block_far_too_large() -> None:
    large = add_norm((4400, 1000))
    address = large.data_ptr()
    del large
    assert add_norm().data_ptr() != address


def test_outputs_are_tensors_like_any_other() -> None:
    y = add_norm(value=2.0)
    assert y.untyped_storage().nbytes() == y.numel() * 4
    assert y.untyped_storage().resizable()
    y.resize_(2 * LARGE[0], LARGE[1])
    assert bool((y[: LARGE[0]] == 2).all())
    shared = add_norm(value=3.0).share_memory_()
    assert shared.is_shared()
    assert bool((shared == 3).all())


def test_the_column_sums_of_wide_rows_take_no_new_pages() -> None:
    x, weight = torch.ones(512, 16384), torch.ones(16384, requires_grad=True)  # their partials take 2.2 MB
    dy, faults = torch.ones_like(x), []
    for _ in range(3):
        y = addnorm.add_norm(x, None, weight)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.autograd.grad(y, weight, dy)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[-1] < 100


def test_little_is_kept() -> None:
    before = resident()
    outputs = [add_norm((32768, 1000)) for _ in range(6)]
    assert resident() - before > 780e6
    outputs.clear()
    assert resident() - before < 560e6


WITHOUT_ROOM = """
import resource, torch, addnorm
x = torch.ones(1000).expand(90_000, 1000)
with torch.no_grad():
    addnorm.add_norm(x)  # 360 MB, kept
    room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (50 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    addnorm.add_norm(x[:50_000])  # 200 MB: too large for what is left, too small for the block
"""


def test_what_is_kept_makes_room_for_what_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ROOM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_never_share_a_block() -> None:
    wrong: list[float] = []

    def work(value: float) -> None:
        for _ in range(30):
            y = add_norm(value=value)
            if not bool((y == value).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


DEEP = """
import resource, torch, addnorm
x = torch.ones(768).expand({rows}, 768)
with torch.no_grad():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        outputs = [addnorm.add_norm(x) for _ in range(160)]
        del outputs
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.parametrize("rows", [64, 512])
def test_a_deep_model_takes_no_new_pages(rows: int) -> None:
    """Its outputs live until the backward. malloc is made to give back at once what it would give back at times."""
    done = subprocess.run(
        [sys.executable, "-c", DEEP.format(rows=rows)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 100
