"""What a placement is: where the sums and the norms stand in a stack of sublayers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..checks import check_flag
from ..functional import add_norm, add_norm_stream
from ..modules import AddNorm, path_scale
from ..norms import Norm
from .slots import Slot

State = Any  # a tensor or a tuple of them: the placement's own
Kind = Literal["attention", "ffn"]


@dataclass(frozen=True)
class Site:
    """Where a sublayer stands.

    The last sublayer of a layer is its ``"ffn"``, all before it are its ``"attention"`` (self- and cross-attention,
    or what mixes tokens in their place); a layer of one sublayer is an ``"ffn"``.
    """

    index: int  # of the sublayer in its stack, from 0
    layer: int  # from 0
    layers: int | None  # N, None where it is unknown
    kind: Kind
    last: bool  # of its stack


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all sums and norms of a stack share."""

    d_model: int
    norm: str | Norm = "layer"
    eps: float = 1e-5
    bias: bool | None = None
    weight_offset: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0  # of the last layer; layer l of N has l / N of it
    backend: str | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None


class Placement(nn.Module, ABC):
    """The sums and norms of one stack, with their parameters; the sublayers are not its own.

    ``start`` gives the first sublayer's input and a state, ``combine`` takes each sublayer's output in turn and gives
    the next one's input and the next state, ``finish`` makes the result of the last state::

        x, state = placement.start(x)
        for sublayer, site in zip(sublayers, placement.sites):
            x, state = placement.combine(sublayer(x), state, site)
        y = placement.finish(state)

    Args:
        sites: One for each sublayer, in order.
        settings: See `Settings`.
        final_norm: Whether the result is normed once more; None: as the placement's paper has it.
    """

    name: ClassVar[str]
    ends_in_norm: ClassVar[bool]  # whether the paper's stack has a final norm
    spans_layer: ClassVar[bool] = False  # whether one sublayer alone is too little
    needs_depth: ClassVar[bool] = False
    d_model_before: bool = True  # whether a norm of this width stands before a sublayer
    d_model_after: bool = False  # whether a norm or a scale of this width acts on its branch or sum
    end: ClassVar[tuple[str, ...]] = ("end: N(h)",)  # what a final norm adds to the algebra
    slots: ClassVar[dict[Kind, tuple[str, ...]]] = {}  # the norms inside a sublayer of each kind

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__()
        check_flag("final_norm", final_norm)
        if self.needs_depth and any(site.layers is None for site in sites):
            raise ValueError(f"placement={self.name!r} needs the number of layers: pass depth=")
        if self.spans_layer and (len(sites) < 2 or all(site.kind == "ffn" for site in sites)):
            raise ValueError(
                f"placement={self.name!r} spans the sublayers of a layer: it needs an addnorm.Stack with "
                "sublayers_per_layer of at least 2"
            )
        self.sites, self.settings = tuple(sites), settings
        wanted = self.ends_in_norm if final_norm is None else final_norm
        self.final_norm = self.new_norm() if wanted else None
        self.d_model_after = self.d_model_after or wanted

    @abstractmethod
    def start(self, x: Tensor) -> tuple[Tensor, State]:
        """The first sublayer's input and the first state."""

    @abstractmethod
    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        """The next sublayer's input and the next state, from the output of the sublayer at `site`."""

    @abstractmethod
    def algebra(self) -> tuple[str, ...]:
        """The formulas that run, one a line: x is the sublayer's input, h the stream, f the sublayer, N a norm."""

    def finish(self, state: State) -> Tensor:
        """The stack's result from the last state."""
        return state

    def initialise(self, sublayers: Sequence[nn.Module], run: Callable[[], object] | None) -> dict[str, float]:
        """Initialises the sublayers as the placement's paper asks: each parameter that was redrawn, with its gain;
        empty where the paper asks for nothing. ``run`` runs the stack once on a sample, where one was given."""
        return {}

    # -- what the placements are made of --------------------------------------------------------------

    def new_norm(self, width: int | None = None) -> AddNorm:
        s = self.settings
        return AddNorm(
            width or s.d_model, norm=s.norm, eps=s.eps, bias=s.bias, weight_offset=s.weight_offset,
            backend=s.backend, device=s.device, dtype=s.dtype,
        )  # fmt: skip

    def new_norms(self) -> nn.ModuleList:
        """One for each site."""
        return nn.ModuleList(self.new_norm() for _ in self.sites)

    def new_scales(self, *shape: int) -> nn.ParameterList:
        """One for each site, for the placement's `reset_parameters` to set."""
        s = self.settings
        return nn.ParameterList(nn.Parameter(torch.empty(shape, device=s.device, dtype=s.dtype)) for _ in self.sites)

    def fill_slots(self, sublayers: Sequence[nn.Module]) -> None:
        """Puts a norm into each slot that the placement needs inside the sublayers; into all of them or none.

        Raises:
            ValueError: where a sublayer does not offer the slot, or its slot is filled.
        """
        found: dict[int, Slot] = {}
        for site, sublayer in zip(self.sites, sublayers, strict=True):
            for name in self.slots.get(site.kind, ()):
                slot = getattr(sublayer, name, None)
                if not isinstance(slot, Slot):
                    raise ValueError(
                        f"placement={self.name!r} norms inside its sublayers: sublayer {site.index} "
                        f"({type(sublayer).__name__}) must offer {name} = addnorm.Slot(width) and call it in its "
                        f"forward, got {'nothing' if slot is None else type(slot).__name__}"
                    )
                slot.check_empty()
                found[id(slot)] = slot  # a sublayer that stands at several sites has one
        for slot in found.values():
            slot.fill(self.new_norm(slot.width))

    def add_norm(
        self, branch: Tensor, residual: Tensor, norm: nn.Module, site: Site, *,
        residual_scale: float = 1.0, branch_scale: Tensor | None = None, gain: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """gain * N(residual_scale * residual + branch_scale * drop(branch)), in one pass."""
        weight, bias, options = self._operands(branch, norm, site, gain)
        return add_norm(
            branch, residual, weight, bias, residual_scale=residual_scale, branch_scale=branch_scale, **options
        )

    def norm_sum(
        self, branch: Tensor, residual: Tensor, norm: nn.Module, *, branch_scale: Tensor | None = None
    ) -> Tensor:
        """N(residual + branch_scale * branch), for a branch that was dropped out before."""
        assert isinstance(norm, AddNorm)
        return add_norm(
            branch, residual, norm.gamma, norm.bias, norm=norm.policy, eps=norm.eps, branch_scale=branch_scale,
            weight_offset=norm.weight_offset, backend=norm.backend,
        )  # fmt: skip

    def pass_on(
        self, branch: Tensor, stream: Tensor, site: Site, norm: nn.Module | None, *,
        branch_scale: Tensor | None = None, gain: float = 1.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What the pre-norm placements share: the branch's sum and the norm before the next sublayer in one pass,
        (N(z), z) with z = stream + drop(branch). After the last site both are the result, N(z), or z without a norm."""
        if norm is None:
            z = self.add(branch, stream, site, branch_scale)
            return z, z
        if site.last:
            y = self.add_norm(branch, stream, norm, site, branch_scale=branch_scale, gain=gain)
            return y, y
        weight, bias, options = self._operands(branch, norm, site, gain)
        return add_norm_stream(branch, stream, weight, bias, branch_scale=branch_scale, **options)

    def next_norm(self, norms: nn.ModuleList, site: Site) -> nn.Module | None:
        """The norm before the next sublayer, the final one after the last."""
        return self.final_norm if site.last else norms[site.index + 1]

    def add(self, branch: Tensor, residual: Tensor, site: Site, scale: Tensor | None = None) -> Tensor:
        """residual + scale * drop(branch): a sum with no norm behind it."""
        return residual + self.dropped(branch, site, scale)

    def dropped(self, branch: Tensor, site: Site, scale: Tensor | None = None) -> Tensor:
        """scale * drop(branch), on its own."""
        branch = F.dropout(branch, self.settings.dropout, self.training) if self.settings.dropout else branch
        branch = branch if scale is None else branch * scale
        row = self._path_scale(branch, site)
        return branch if row is None else (branch * row.unsqueeze(-1)).to(branch.dtype)  # row is not in half precision

    def drop_path(self, site: Site) -> float:
        """Stochastic depth's linear schedule (Huang et al. 2016, arXiv:1603.09382): layer l of N drops l/N of p."""
        return self.settings.drop_path * (site.layer + 1) / (site.layers or 1)

    def _path_scale(self, branch: Tensor, site: Site) -> Tensor | None:
        return path_scale(branch, self.drop_path(site)) if self.training else None

    def _operands(
        self, branch: Tensor, norm: nn.Module, site: Site, gain: float
    ) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
        assert isinstance(norm, AddNorm)  # which a ModuleList does not say
        weight, bias = norm.gamma, norm.bias
        if gain != 1:
            weight, bias = (None if t is None else unrounded(t) * gain for t in (weight, bias))
        options = {
            "norm": norm.policy, "eps": norm.eps, "weight_offset": norm.weight_offset * gain,
            "dropout_p": self.settings.dropout, "training": self.training,
            "row_scale": self._path_scale(branch, site), "backend": norm.backend,
        }  # fmt: skip
        return weight, bias, options


def unrounded(t: Tensor) -> Tensor:
    """In a type in which a factor does not round it to half precision."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
