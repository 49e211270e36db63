"""Dynamo's own warnings, of how it takes the code that it captures, are not for who fuses a model: the report says what
could not be captured."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

from torch._dynamo.callback import callback_handler


class Quiet:
    """Leaves out the warnings that Dynamo's files give while it captures for some caller: between the two, which run
    under its lock, no code of the model's runs."""

    def __init__(self, caller: types.CodeType) -> None:
        self._caller = caller
        self._held: warnings.catch_warnings | None = None

    def listen(self) -> None:
        """Be told of captures; again after `torch._dynamo.reset`, which forgets who is."""
        if self.start not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self.start)
            callback_handler.register_end_callback(self.end)

    def start(self, _: Any) -> None:
        frame = sys._getframe()
        while frame is not None and frame.f_code is not self._caller:
            frame = frame.f_back
        if frame is not None:
            self._held = warnings.catch_warnings()
            self._held.__enter__()
            warnings.filterwarnings("ignore", module=r"torch\._dynamo\b")

    def end(self, _: Any) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)
