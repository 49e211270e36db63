"""`Residual`: a skip and a norm around one sublayer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_count, check_module, check_probability
from ..modules import check_width
from ..norms import Norm
from ..placements import Settings, Site, make
from .sublayer import branch_of


class Residual(nn.Module):
    """Add & Norm around any module whose output is shaped like its input: linear, activation, pooling, attention...

        post: y = N(x + drop(f(x)));   pre: y = x + drop(f(N(x)));   others: see `addnorm.placements`

    Args:
        sublayer: f.
        d_model: Width of the last dimension, which the norm sees.
        placement: One of `addnorm.placements.PLACEMENTS`, post-norm by default (a `Stack` is pre-norm by default).
            Those that span several sublayers need a `Stack`. In a row, peri norms the stream once, in the block with
            ``layer=0``; residual_dual and admin begin anew in each block, and need a `Stack` to be the paper's.
        norm, eps, bias, weight_offset, backend, device, dtype: Of the norm, as in `AddNorm`.
        dropout: Probability of dropping an element of the branch while training.
        drop_path: Probability of dropping a sample's whole branch while training, in the last layer; layer l of
            ``depth`` has l / depth of it.
        depth: Number of layers of the model, where the placement needs it (DeepNorm's alpha). Pre-norm's `initialise`
            takes each layer for one sublayer.
        layer: Which of these layers this is, from 0.
        final_norm: Whether the result is normed once more; None: as the placement's paper has it. residual_dual needs
            True or None.
        shortcut: Maps the skip where the sublayer changes the shape; its input is what the placement carries on the
            skip. Where it changes the width, d_model is the one after the sum with post, deepnorm, admin, rezero and
            mix_ln's first layers, and the one before the sublayer with pre, sub_ln, layernorm_scaling and mix_ln's
            other layers, which then have no final norm; with other placements it can not.
        options: The placement's own, such as DeepNorm's ``decoder_layers``.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is allowed.

    >>> block = Residual(nn.Linear(8, 8), 8, placement="pre", dropout=0.1)
    >>> block(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])

    A module that takes more than one tensor gets the others in the call, as they are; for self-attention, wrap it:

    >>> class SelfAttention(nn.MultiheadAttention):
    ...     def forward(self, x, **options):
    ...         return super().forward(x, x, x, **options)
    >>> block = Residual(SelfAttention(8, 2, batch_first=True), 8, placement="pre")
    >>> y, attention_weights = block(torch.randn(2, 5, 8))
    """

    def __init__(
        self,
        sublayer: nn.Module,
        d_model: int,
        placement: str = "post",
        *,
        norm: str | Norm = "layer",
        eps: float = 1e-5,
        bias: bool | None = None,
        weight_offset: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        depth: int | None = None,
        layer: int = 0,
        final_norm: bool | None = False,
        shortcut: nn.Module | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_module("sublayer", sublayer)
        check_count("d_model", d_model)
        check_probability("dropout", dropout)
        check_probability("drop_path", drop_path)
        if depth is not None:
            check_count("depth", depth)
        check_count("layer", layer, least=0)
        if depth is not None and layer >= depth:
            raise ValueError(f"layer must be from 0 to depth - 1 = {depth - 1}, got {layer}")
        if drop_path and layer and depth is None:
            raise ValueError("drop_path grows with the layer, to all of it in the last one: pass depth= with layer=")
        if shortcut is not None:
            check_module("shortcut", shortcut)
        settings = Settings(
            d_model=d_model, norm=norm, eps=eps, bias=bias, weight_offset=weight_offset, dropout=dropout,
            drop_path=drop_path, backend=backend, device=device, dtype=dtype,
        )  # fmt: skip
        site = Site(index=0, layer=layer, layers=depth, kind="ffn", last=True)
        self.d_model, self.sublayer, self.shortcut = d_model, sublayer, shortcut
        self.placement = make(placement, [site], settings, final_norm, **options)
        self.placement.fill_slots([sublayer])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """y. Further arguments go to the sublayer as they are: the norm sees x alone. Where it returns a tuple,
        the first item is the branch and the others follow y in a tuple: ``(y, *others)``."""
        if self.shortcut is None or self.placement.d_model_before:
            check_width(x, self.d_model)
        taken, state = self.placement.start(x)
        if self.shortcut is not None:
            if not isinstance(state, Tensor):
                raise ValueError(f"placement={self.placement.name!r} carries more than one skip: it has no shortcut")
            state = self.shortcut(state)
            self._check_mapped(state)
        skip = state if isinstance(state, Tensor) else x
        branch, rest = branch_of(self.sublayer, taken, args, kwargs, skip.shape, "the sublayer")
        _, state = self.placement.combine(branch, state, self.placement.sites[0])
        y = self.placement.finish(state)
        return (y, *rest) if rest else y

    @torch.no_grad()
    def initialise(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Initialises the sublayer as the placement's paper asks; see `Stack.initialise`. Admin runs the block once.

        Raises:
            ValueError: where a matrix to scale is missing or has no known role, pre-norm has no ``depth``, or Admin has
                no sample or one without a finite variance.
        """
        run = None if x is None else partial(self, x, *args, **kwargs)
        return self.placement.initialise([self.sublayer], run)

    def extra_repr(self) -> str:
        settings = self.placement.settings
        return (
            f"{self.d_model}, placement={self.placement.name!r}, dropout={settings.dropout}, "
            f"drop_path={settings.drop_path}"
        )

    def _check_mapped(self, skip: Tensor) -> None:
        placement = self.placement
        if not placement.d_model_after or skip.shape[-1] == self.d_model:
            return
        end = "" if placement.final_norm is None else " with a final norm"
        before = ", as before the sublayer: the width can not change" if placement.d_model_before else ""
        raise ValueError(
            f"shortcut maps the skip to width {skip.shape[-1]}: with placement={placement.name!r}{end} its width must "
            f"be d_model = {self.d_model}{before}"
        )
