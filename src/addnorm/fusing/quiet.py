"""Dynamo's own warnings, of how it takes the code that it captures, are not for who fuses a model: the report says what
could not be captured."""

from __future__ import annotations

import logging
import sys
import types
import warnings
from contextlib import ExitStack
from typing import Any

from torch._dynamo.callback import callback_handler

LOGGERS = {  # below which level each is quiet
    logging.getLogger("torch._dynamo"): logging.ERROR,
    logging.getLogger("torch._subclasses.fake_tensor"): logging.CRITICAL,  # of errors that the model itself raises next
}


class Quiet:
    """Leaves out what Dynamo warns and logs as a warning while it captures for some caller: between the two, which run
    under its lock, no code of the model's runs. Who asked for more in the log gets all."""

    def __init__(self, caller: types.CodeType) -> None:
        self._caller = caller
        self._held = ExitStack()

    def listen(self) -> None:
        """Be told of captures; again after `torch._dynamo.reset`, which forgets who is."""
        if self.start not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self.start)
            callback_handler.register_end_callback(self.end)

    def start(self, _: Any) -> None:
        frame = sys._getframe()
        while frame is not None and frame.f_code is not self._caller:
            frame = frame.f_back
        if frame is None:
            return
        self._held.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"torch\._(dynamo|subclasses)\b")
        for logger, level in LOGGERS.items():
            if logger.getEffectiveLevel() == logging.WARNING:
                self._held.callback(logger.setLevel, logger.level)
                logger.setLevel(level)

    def end(self, _: Any) -> None:
        self._held.close()
