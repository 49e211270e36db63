"""A module's place of call, and what of ours stands there: one on the other, in the order in which they came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import nn

PLACE = "_compiled_call_impl"  # what torch.nn.Module.__call__ calls instead of forward; never copied nor saved
PLACES = threading.RLock()  # held while it changes what has which module's place of call


class InPlace:
    """What of ours stands in a module's place of call."""

    before: Any = None  # what had the place; None where nothing had
    objection: ClassVar[str] = ""  # why nothing else may be put upon it


def standing(module: Any) -> Iterator[InPlace]:
    """Ours in a module's place of call, the one that is called first."""
    call = getattr(module, "__dict__", {}).get(PLACE)
    while isinstance(call, InPlace):
        yield call
        call = call.before


def put(module: nn.Module, call: InPlace) -> None:
    """Let this run in place of a module's call."""
    call.before = module.__dict__.get(PLACE)
    module.__dict__[PLACE] = call


def take(module: nn.Module, call: InPlace) -> bool:
    """The way back, whatever of ours was put upon it since; whether it stood there. Another's is left as it is."""
    upon = None
    for each in standing(module):
        if each is call:
            if upon is not None:
                upon.before = call.before
            elif call.before is None:
                del module.__dict__[PLACE]
            else:
                module.__dict__[PLACE] = call.before
            return True
        upon = each
    return False
