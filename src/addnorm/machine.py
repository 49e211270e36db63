"""The machine and the versions that a number was taken on."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from .backends.native import EXTENSION

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
PEERS = ("liger-kernel", "fla-core", "quack-kernels")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True)
class Machine:
    """Hardware and software, as plain data."""

    cpu: str
    cores: int  # that this process may use
    threads: int  # of torch
    caches: dict[str, str]
    huge_pages: str
    system: str
    python: str
    torch: str
    addnorm: str
    isa: str  # of the C++ extension; "none" without it
    onnxruntime: str  # "none" where it is not installed
    date: str  # UTC
    gpu: str = "none"  # the current CUDA device
    cuda: str = "none"  # that torch is built for
    triton: str = "none"
    peers: dict[str, str] = field(default_factory=dict)  # versions of what the GPU benchmark also runs


def describe() -> Machine:
    """This machine, now."""
    return Machine(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        caches=caches(),
        huge_pages=huge_pages(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        addnorm=version("addnorm"),
        isa=isa(),
        onnxruntime=version("onnxruntime"),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gpu=gpu(),
        cuda=torch.version.cuda or "none",
        triton=version("triton"),
        peers={package: found for package in PEERS if (found := version(package)) != "none"},
    )


def version(package: str) -> str:
    """A package's version, "none" where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return own_version() if package == "addnorm" else "none"


def own_version() -> str:
    """This package's, which may run from its source tree."""
    return sys.modules["addnorm"].__version__


def gpu() -> str:
    """The current CUDA device: name, multiprocessors, memory."""
    if not torch.cuda.is_available():
        return "none"
    seen = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{seen.name}, {seen.multi_processor_count} multiprocessors, {seen.total_memory / 2**30:.0f} GiB"


def isa() -> str:
    """The instruction set that the C++ extension runs."""
    return "none" if EXTENSION is None else EXTENSION.isa()


def cpu_model() -> str:
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def caches() -> dict[str, str]:
    """Sizes by level of the data caches that the first core sees."""
    sizes = {}
    for index in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:  # a virtual machine may not tell
            continue
        if kind != "Instruction":
            sizes[f"L{level}"] = size
    return sizes


def huge_pages() -> str:
    """The kernel's setting for transparent huge pages: always, madvise, never or unknown."""
    if not HUGE_PAGES.exists():
        return "unknown"
    return HUGE_PAGES.read_text().partition("[")[2].partition("]")[0] or "unknown"
