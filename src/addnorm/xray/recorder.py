"""The probe of an inspection: it feeds every measurement of every site."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Measurement
from .capture import Kind, Place, Visit
from .measurements import MEASUREMENTS
from .tokens import Layout, RealTokens, real_rows, tokens_of


class SiteRecord:
    """The measurements of one site."""

    def __init__(self, kind: Kind, width: int) -> None:
        self.kind, self.width = kind, width
        self.tokens = self.padding = 0
        self.measured: dict[str, Measurement] = {name: each() for name, each in MEASUREMENTS.items()}


class Recorder:
    """What is done at a site is `look`, one of `ignore`, `measure` and `keep`, as the pass is for.

    With `backward`, gradients of the stream are measured when they come; with `identity`, all branches are detached.
    """

    def __init__(self) -> None:
        self.sites: dict[Place, SiteRecord] = {}
        self.real, self.number, self.batch_first = RealTokens(), 0, True
        self.look: Callable[[Place, Kind, Visit], None] = self.ignore
        self.backward = self.identity = False
        self.leaves: list[Tensor] = []  # where a backward has to reach, so that it passes every site
        self.kept: dict[Place, Tensor] = {}  # what came out in the pass that keeps

    def layout(self, place: Place) -> Layout:
        return Layout(self.number, self.real.of_module(place.norm), self.batch_first)

    def branch(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or (x.requires_grad and not self.identity):
            return x
        leaf = x.detach().requires_grad_()
        self.leaves.append(leaf)
        return leaf

    def visit(self, place: Place, kind: Kind, visit: Visit) -> None:
        if place not in self.sites:
            self.sites[place] = SiteRecord(kind, visit.z.shape[-1])
        self.look(place, kind, visit)

    def ignore(self, place: Place, kind: Kind, visit: Visit) -> None:
        """Only note that the site is there."""

    def measure(self, place: Place, kind: Kind, visit: Visit) -> None:
        site = self.sites[place]
        if not self.identity:
            tokens = tokens_of(kind, visit, self.layout(place))
            site.tokens += len(tokens.z)
            site.padding += tokens.padding
            for measurement in site.measured.values():
                measurement.update(tokens)
        carried = visit.carried(kind)
        if self.backward and carried.requires_grad:  # a part of the model may run without gradients
            carried.register_hook(self.arrival(site, self.layout(place)))

    def arrival(self, site: SiteRecord, layout: Layout) -> Callable[[Tensor], None]:
        identity = self.identity

        def note(gradient: Tensor) -> None:
            rows, where = real_rows(gradient, layout)
            for measurement in site.measured.values():
                measurement.gradient(rows, where, identity=identity)

        return note

    def keep(self, place: Place, kind: Kind, visit: Visit) -> None:
        """Remember what comes out."""
        self.kept[place] = visit.y.detach().clone()

    def compare(self, before: dict[Place, Tensor], after: dict[Place, Tensor]) -> None:
        """What came out of two passes over the same real tokens. At a site that ran in one of them alone, or on another
        number of tokens, all have changed beyond bounds."""
        for place, y in {**before, **after}.items():
            rows, where = real_rows(y, self.layout(place))
            if place in before and place in after and before[place].shape == y.shape:
                was, _ = real_rows(before[place], self.layout(place))
                changes = (rows - was).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).where(was.isfinite(), 0.0)
            else:
                changes = torch.full_like(rows, torch.inf)
            for measurement in self.sites[place].measured.values():
                measurement.repadded(changes.amax(-1), where)
