"""The launches of a call and the memory that they work on: started at once, or prepared to be started again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..base import Plan
from .start import Launch, named

HERE = contextlib.nullcontext()


class Work(NamedTuple):
    """`memory` is what the pointers' names stand for."""

    memory: dict[str, Tensor | None]
    launches: list[Launch]

    def start(self) -> None:
        for launch in self.launches:
            launch.start(self.memory)

    def plan(self, given: Sequence[str], results: Sequence[str], device: torch.device) -> Plan:
        """The same work on other memory: what is `given` comes as addresses, in this order, the rest is made anew, of
        which the `results` are returned. All of it is contiguous and aligned."""
        made = {name: t for name, t in self.memory.items() if t is not None and name not in given}
        makers = [maker(t) for t in made.values()]
        places = {name: i for i, name in enumerate((*given, *made))}
        values = {name: places.get(name, -1) for name in (*self.memory, *given)}  # what is not there is the last, None
        with on(device):  # where the programs are also loaded
            steps = [(each.starter(named(each.pointers, self.memory)), picker(named(each.pointers, values)))
                     for each in self.launches]  # fmt: skip
        chosen = itemgetter(*[list(made).index(name) if name in made else -1 for name in results])
        current = triton.runtime.driver.active.get_current_device

        def again(addresses: Sequence[int | None]) -> tuple[Tensor | None, ...]:
            tensors = [make() for make in makers]
            values = [*addresses, *[t.data_ptr() for t in tensors], None]
            with HERE if current() == device.index else torch.cuda.device(device):
                for start, pick in steps:
                    start(*pick(values))
            return chosen([*tensors, None])

        return again


def maker(t: Tensor) -> Callable[[], Tensor]:
    """Makes contiguous tensors like this one, by the quickest of torch's ways. It keeps none: a plan may be made while
    torch.compile records a CUDA graph, whose memory it lets nothing else keep."""
    strides = torch.empty(t.shape, device="meta").stride()
    return partial(torch.empty_strided, tuple(t.shape), strides, dtype=t.dtype, device=t.device)


def picker(places: tuple[Any, ...]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What takes the values at some places, which may be nested."""
    if len(places) > 1 and all(isinstance(place, int) for place in places):
        return itemgetter(*places)  # of one place it would give no tuple
    inner = [(lambda values, i=place: values[i]) if isinstance(place, int) else picker(place) for place in places]
    return lambda values: tuple([pick(values) for pick in inner])


def on(device: torch.device) -> Any:
    """Kernels run on the current device: make it this one, where it is another."""
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if elsewhere else HERE
