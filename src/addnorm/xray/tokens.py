"""Which rows of a site's tensors are real tokens, and those rows in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..norms import policy
from .capture import Kind, Visit
from .streaming import Where

MASKS: dict[str, Callable[[Tensor], Tensor]] = {  # arguments that tell real tokens from padding
    "attention_mask": lambda mask: mask != 0,
    "src_key_padding_mask": lambda mask: mask == 0,  # True, or -inf, is padding
    "key_padding_mask": lambda mask: mask == 0,
    "padding_mask": lambda mask: mask == 0,
    "decoder_attention_mask": lambda mask: mask != 0,
    "tgt_key_padding_mask": lambda mask: mask == 0,
}
DECODER = ("decoder", "tgt")  # how the names of a decoder's own inputs begin
VISION = "vision"  # how the names of parts begin to which a mask of the text says nothing


def named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call by their names in the model's ``forward``."""
    try:
        return {**inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments, **kwargs}
    except (TypeError, ValueError):  # the call itself will say what is wrong with them
        return dict(kwargs)


@dataclass(frozen=True)
class RealTokens:
    """Which tokens are real, ``(sequences, tokens)``; None where there is no mask of that kind: then all are."""

    inputs: Tensor | None = None
    decoder: Tensor | None = None  # those of a decoder that has inputs of its own
    within: str | None = None  # how the name of that decoder's part begins; "" where it is the whole model

    def of_input(self, name: str) -> Tensor | None:
        return self.decoder if name.startswith(DECODER) else self.inputs

    def of_module(self, path: str) -> Tensor | None:
        parts = path.split(".")
        if any(part.startswith(VISION) for part in parts):
            return None
        decoder = self.within is not None and any(part.startswith(self.within) for part in parts)
        return self.decoder if decoder else self.inputs


def real_tokens(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RealTokens:
    """What the masks among the inputs of a call say."""
    inputs = named_inputs(model, args, kwargs)
    found: dict[bool, Tensor | None] = {}
    for name, real in MASKS.items():
        mask = inputs.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            found.setdefault(name.startswith(DECODER), real(mask))
    own = any(name.startswith(DECODER) and value is not None for name, value in inputs.items())
    labels = inputs.get("labels")
    if not own and not (isinstance(labels, Tensor) and labels.dim() > 1):
        found[True] = found.get(False)  # a decoder has no inputs but those, as BART's without any of its own
    return RealTokens(found.get(False), found.get(True), decoder_within(model, own=own))


def decoder_within(model: nn.Module, *, own: bool) -> str | None:
    """How the name of the part begins that is a decoder with inputs of its own, or with some made from labels."""
    parts = {part for path, _ in model.named_modules() for part in path.split(".")}
    encoder, decoder = (any(part.startswith(name) for part in parts) for name in ("encoder", "decoder"))
    if decoder:
        return "decoder" if own or encoder else None
    return "" if own and not encoder else None


def batch_first(model: nn.Module) -> bool:
    """Whether tokens lie ``(sequences, tokens, features)``, as nearly everywhere, not ``(tokens, sequences, ...)``."""
    return not any(getattr(module, "batch_first", True) is False for module in model.modules())


@dataclass(frozen=True)
class Layout:
    """Where the rows of one batch belong. Rows are counted through the leading dimensions of a site's tensors."""

    batch: int  # number of the batch
    real: Tensor | None  # (sequences, tokens)
    batch_first: bool = True

    def rows(self, leading: torch.Size) -> tuple[Tensor | None, Tensor, Tensor]:
        """Which rows are real (None: all), the sequence of each row and its position there."""
        index = torch.arange(leading.numel())
        real = self.real
        if not self.batch_first and len(leading) == 2:
            sequence, position = index % leading[1], index // leading[1]
            fits = real is not None and real.T.shape == leading
            return (real.T.reshape(-1) if fits and real is not None else None), sequence, position
        fits = real is not None and leading in (real.shape, (real.numel(),))
        length = real.shape[1] if fits and real is not None else leading[-1] if leading else 1
        sequence, position = index // max(length, 1), index % max(length, 1)
        return (real.reshape(-1) if fits and real is not None else None), sequence, position


@dataclass(frozen=True)
class Tokens:
    """The real tokens of one visit, a row each, ``(rows, d)`` in float64. Rows with NaN or infinity are left out."""

    x: Tensor
    residual: Tensor
    z: Tensor
    y: Tensor
    gain: Tensor | None  # weight_offset + weight
    bias: Tensor | None
    kind: Kind
    dtype: torch.dtype  # of z in the model
    where: Where
    nonfinite: Tensor  # how many elements of z and y are NaN or infinite, of each real token that has any
    left_out: Where  # those tokens
    padding: int  # rows that are padding

    @property
    def carried(self) -> Tensor:
        """The stream after the site: what the next block adds to."""
        return self.z if self.kind.carry == "z" else self.y

    @property
    def divided(self) -> bool:
        """Whether the norm divides by anything: DyT and Derf do not."""
        return policy(self.kind.norm).stats_per_row > 0

    @cached_property
    def statistics(self) -> Tensor:
        """Those of the norm, without eps. Of one that divides, the last is 1 / sqrt(v), and those before it add up to
        the mean that it subtracts."""
        return policy(self.kind.norm).statistics(self.z, 0.0)

    @property
    def mean(self) -> Tensor:
        """mu of each row; 0 where the norm subtracts none, as RMSNorm."""
        return self.statistics[:, :-1].sum(-1)

    @property
    def variance(self) -> Tensor:
        """v of each row: LayerNorm's biased variance, RMSNorm's mean square, what other norms divide by the root of."""
        return self.statistics[:, -1].pow(-2)

    @cached_property
    def x_norm(self) -> Tensor:
        return self.x.norm(dim=-1)

    @cached_property
    def residual_norm(self) -> Tensor:
        return self.residual.norm(dim=-1)


@torch.no_grad()
def tokens_of(kind: Kind, visit: Visit, layout: Layout) -> Tokens:
    """The rows to measure. Rows with NaN or infinity are only counted."""
    real, sequence, position = layout.rows(visit.z.shape[:-1])
    device = visit.z.device
    wide = [each.detach().reshape(-1, each.shape[-1]) for each in (visit.x, visit.residual, visit.z, visit.y)]
    rows = len(wide[0])
    chosen = torch.ones(rows, dtype=torch.bool, device=device) if real is None else real.to(device)
    finite = wide[2].isfinite().all(-1) & wide[3].isfinite().all(-1)
    where = Where(layout.batch, sequence.to(device), position.to(device))
    keep, bad = chosen & finite, chosen & ~finite
    x, residual, z, y = (tensor[keep].double() for tensor in wide)
    gain = None if visit.weight is None else kind.weight_offset + visit.weight.detach().double()
    return Tokens(
        x=x,
        residual=residual,
        z=z,
        y=y,
        gain=gain,
        bias=None if visit.bias is None else visit.bias.detach().double(),
        kind=kind,
        dtype=visit.z.dtype,
        where=where[keep],
        nonfinite=(~wide[2][bad].isfinite()).sum(-1) + (~wide[3][bad].isfinite()).sum(-1),
        left_out=where[bad],
        padding=rows - int(chosen.sum()),
    )


def real_rows(tensor: Tensor, layout: Layout) -> tuple[Tensor, Where]:
    """The rows of real tokens, ``(rows, d)``, in float64, and whose they are."""
    real, sequence, position = layout.rows(tensor.shape[:-1])
    rows = tensor.detach().reshape(-1, tensor.shape[-1]).double()
    where = Where(layout.batch, sequence.to(rows.device), position.to(rows.device))
    if real is None:
        return rows, where
    real = real.to(rows.device)
    return rows[real], where[real]
