"""`Stack`: the whole residual stream of an encoder or decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checks import check_count, check_module, check_probability
from ..modules import AddNorm, check_width
from ..norms import Norm, policy
from ..placements import Settings, Site, make
from ..words import count as counted
from .sublayer import branch_of, given_types

Kwargs = Sequence[Mapping[str, Any]]
Step = tuple[nn.Module, Mapping[str, Any], Site]


class Stack(nn.Module):
    """Sublayers in a row under one placement, each sum fused with the norm that follows it.

    Building it never changes the sublayers' weights: `initialise` does. Norms that are fused into sums are not called
    as modules: forward hooks on them do not run, nor does `torch.nn.utils.prune`, which works by one; parametrisations
    do.

    Args:
        sublayers: Modules whose output is shaped like their input; attention and feed-forward in turn, say.
        d_model: Width of the last dimension.
        placement: One of `addnorm.placements.PLACEMENTS`, pre-norm by default (a `Residual` is post-norm by default).
        norm, eps, bias, weight_offset, backend, device, dtype: Of the norms, as in `AddNorm`.
        dropout: Probability of dropping an element of each branch while training.
        final_norm: Whether the result is normed once more; None: as the placement's paper has it.
        sublayers_per_layer: How many sublayers make a layer, for formulas that count layers; the last of them is
            the feed-forward one.
        drop_path: Stochastic depth (Huang et al. 2016, arXiv:1603.09382): probability of dropping a sample's branch in
            the last layer; layer l of N has l / N of it.
        checkpoint_every: Where gradients are recorded, keep at every so many layers only what the next one takes (the
            stream, and with pre-norm its norm too), and recompute what lies between in the backward.
            What a sublayer appends to a mutable keyword argument is appended again there.
        options: The placement's own, such as DeepNorm's ``decoder_layers``.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is allowed.

    >>> sublayers = [nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(4)]
    >>> stack = Stack(sublayers, 8, placement="deepnorm")
    >>> print(stack.describe())
    deepnorm: 4 sublayers in 2 layers, width 8, layer norm
      x <- N(1.41421 x + drop(f(x)))
      initialise(): gain 0.5 on v, o, fc1, fc2
    >>> stack(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        sublayers: Iterable[nn.Module],
        d_model: int,
        *,
        placement: str = "pre",
        norm: str | Norm = "layer",
        eps: float = 1e-5,
        bias: bool | None = None,
        weight_offset: float = 0.0,
        dropout: float = 0.0,
        final_norm: bool | None = None,
        sublayers_per_layer: int = 2,
        drop_path: float = 0.0,
        checkpoint_every: int | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(sublayers, Iterable):
            raise TypeError(f"sublayers must be an iterable of torch.nn.Module, got {type(sublayers).__name__}")
        sublayers = list(sublayers)
        for index, sublayer in enumerate(sublayers):
            check_module(f"sublayers[{index}]", sublayer)
        check_count("d_model", d_model)
        check_count("sublayers_per_layer", sublayers_per_layer)
        if not sublayers or len(sublayers) % sublayers_per_layer:
            raise ValueError(
                f"{counted(len(sublayers), 'sublayer')} can not make whole layers of "
                f"sublayers_per_layer={sublayers_per_layer}"
            )
        check_probability("dropout", dropout)
        check_probability("drop_path", drop_path)
        if checkpoint_every is not None:
            check_count("checkpoint_every", checkpoint_every)
        settings = Settings(
            d_model=d_model, norm=norm, eps=eps, bias=bias, weight_offset=weight_offset, dropout=dropout,
            drop_path=drop_path, backend=backend, device=device, dtype=dtype,
        )  # fmt: skip
        self.d_model, self.sublayers_per_layer, self.checkpoint_every = d_model, sublayers_per_layer, checkpoint_every
        self.placement = make(placement, sites(len(sublayers), sublayers_per_layer), settings, final_norm, **options)
        self.placement.fill_slots(sublayers)
        self.sublayers = nn.ModuleList(sublayers)

    def forward(self, x: Tensor, sublayer_kwargs: Kwargs | None = None, **shared: Any) -> Tensor:
        """The stack's result, of x's shape ``(..., d_model)``.

        Where a sublayer returns a tuple, the first item is the branch and the others are dropped; caches and attention
        weights have to leave through a mutable argument.

        Args:
            x: ``(..., d_model)``.
            sublayer_kwargs: Keyword arguments for each sublayer (masks, caches): one mapping for each, or one for each
                sublayer of a layer, which every layer then gets.
            shared: Keyword arguments for all sublayers.
        """
        check_width(x, self.d_model)
        given = self._kwargs_of_each(sublayer_kwargs, shared)
        taken, state = self.placement.start(x)
        steps = list(zip(self.sublayers, given, self.placement.sites, strict=True))
        every = self.sublayers_per_layer * self.checkpoint_every if self.checkpoint_every else len(steps)
        for first in range(0, len(steps), every):
            run = partial(self._run, steps[first : first + every])
            if self.checkpoint_every and torch.is_grad_enabled():
                taken, state = checkpoint(run, taken, state, use_reentrant=False)
            else:
                taken, state = run(taken, state)
        return self.placement.finish(state)

    def initialise(
        self, x: Tensor | None = None, sublayer_kwargs: Kwargs | None = None, **shared: Any
    ) -> dict[str, float]:
        """Initialises the sublayers as the placement's paper asks.

        DeepNorm, Sub-LN and pre-norm draw the sublayers' matrices anew, from Glorot's normal distribution with a gain
        by role (see `addnorm.placements.weights`); Admin runs the stack once on the sample `x`; the others ask for
        nothing.

        Returns:
            What was set, by name, and to which gain or value; empty where the paper asks for nothing.

        Raises:
            ValueError: where a matrix to scale is missing or has no known role, or Admin has no sample or one without a
                finite variance. Nothing is changed then.
        """
        run = None if x is None else torch.no_grad()(partial(self, x, sublayer_kwargs, **shared))
        return self.placement.initialise(list(self.sublayers), run)

    def describe(self) -> str:
        """The algebra that runs, with its constants."""
        placement, settings = self.placement, self.placement.settings
        number = len(self.sublayers)
        facts = [
            f"{counted(number, 'sublayer')} in {counted(number // self.sublayers_per_layer, 'layer')}",
            f"width {self.d_model}",
        ]
        if any(isinstance(module, AddNorm) for module in placement.modules()):
            facts.append(f"{policy(settings.norm).name} norm")
        facts += [f"{name} {p:g}" for name in ("dropout", "drop_path") if (p := getattr(settings, name))]
        end = () if placement.final_norm is None else placement.end
        return "\n  ".join((f"{placement.name}: {', '.join(facts)}", *placement.algebra(), *end))

    def extra_repr(self) -> str:
        settings = self.placement.settings
        return (
            f"{self.d_model}, placement={self.placement.name!r}, dropout={settings.dropout}, "
            f"drop_path={settings.drop_path}"
        )

    def _run(self, steps: Sequence[Step], x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Some sublayers in a row: the next one's input and the next state."""
        combine = self.placement.combine
        for sublayer, kwargs, site in steps:
            branch, _ = branch_of(sublayer, x, (), kwargs, x.shape, f"sublayer {site.index}")
            x, state = combine(branch, state, site)
        return x, state

    def _kwargs_of_each(self, sublayer_kwargs: Kwargs | None, shared: Mapping[str, Any]) -> Kwargs:
        count = len(self.sublayers)
        if sublayer_kwargs is None:
            return [shared] * count
        if not isinstance(sublayer_kwargs, Sequence) or not all(isinstance(each, Mapping) for each in sublayer_kwargs):
            raise TypeError(
                "sublayer_kwargs must be a list of mappings, one for each sublayer or for each of a layer's, got "
                f"{given_types(sublayer_kwargs)}"
            )
        if len(sublayer_kwargs) not in (count, self.sublayers_per_layer):
            raise ValueError(
                f"sublayer_kwargs has {counted(len(sublayer_kwargs), 'mapping')}: there must be one for each of the "
                f"{counted(count, 'sublayer')}, or one for each of a layer's {self.sublayers_per_layer}"
            )
        return [{**shared, **sublayer_kwargs[index % len(sublayer_kwargs)]} for index in range(count)]


def sites(sublayers: int, per_layer: int) -> list[Site]:
    """One site for each sublayer.

    >>> [site.kind for site in sites(4, 2)]
    ['attention', 'ffn', 'attention', 'ffn']
    """
    return [
        Site(
            index=index,
            layer=index // per_layer,
            layers=sublayers // per_layer,
            kind="ffn" if (index + 1) % per_layer == 0 else "attention",
            last=index == sublayers - 1,
        )
        for index in range(sublayers)
    ]
