"""Finds the C++ extension that was built for the torch that is running.

An extension holds for one minor version of torch and carries it in its name, ``_cpu_torch_2_13``; one built
for another version is never loaded.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from platform import python_version
from types import ModuleType

import torch

PACKAGE = Path(__file__).parents[1]
PREFIX = "_cpu_torch_"


def module_name(version: str) -> str:
    """The extension's name for a torch version: its major and minor number."""
    major, minor = version.split(".")[:2]
    return f"{PREFIX}{major}_{minor}"


def load(version: str = torch.__version__) -> tuple[ModuleType | None, str]:
    """The extension for a torch version, or None and the reason why there is none."""
    name = module_name(version)
    try:
        return importlib.import_module(f"addnorm.{name}"), ""
    except ModuleNotFoundError:
        built = sorted({path.name.split(".")[0] for path in PACKAGE.glob(f"{PREFIX}*.so")})
        if name in built:
            return None, f"the C++ extension was built for another Python; Python {python_version()} is running"
        for_which = " and ".join(each.removeprefix(PREFIX).replace("_", ".") for each in built)
        found = f"was built for torch {for_which}" if built else "is not built"
        return None, f"the C++ extension {found}; torch {version} is running"
    except ImportError as error:
        return None, f"the C++ extension does not load: {error}"


EXTENSION, REASON = load()
if EXTENSION is None:  # the results are the same, so that nobody would notice
    warnings.warn(
        f"addnorm runs CPU calls through plain torch, slowly: {REASON}; `addnorm doctor` says what helps",
        RuntimeWarning,
        stacklevel=2,
    )
