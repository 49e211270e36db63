"""`AddNorm`: the sublayer connection as a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .backends import BACKENDS, select
from .call import describe
from .checks import (
    check_count,
    check_dtype,
    check_flag,
    check_number,
    check_probability,
    check_switch,
    lookup,
    type_name,
)
from .functional import add_norm, add_norm_stream
from .norms import Norm, initial_policy, policy


class AddNorm(nn.Module):
    """Residual add and norm, ``norm(residual_scale * residual + branch)``, where the branch is
    ``drop_path(layer_scale * dropout(x + branch_bias))``.

    `forward` gives the normalised sum (post-norm), `stream` also the sum itself (pre-norm). ``weight`` and
    ``bias`` have the names and shapes of `torch.nn.LayerNorm` and `torch.nn.RMSNorm`, whose state dicts load
    strictly. Their eps is no part of it: RMSNorm's own default is ``torch.finfo(x.dtype).eps``, so give ``eps=`` to
    match one that was made without.

    Args:
        d_model: Width of the last dimension.
        norm: ``"layer"``, ``"rms"``, ``"prms"``, ``"scale"`` (its weight is one number), ``"dyt"`` (with a learned
            ``alpha``), ``"derf"`` (and a ``shift``), as in `add_norm`; or a policy object, which gives the initial
            values: ``addnorm.norms.DyT(alpha=0.8)``. One learned number has the shape ``(1,)``.
        eps: Added to the variance, inside the root.
        affine: Whether there is a learned weight, initialised to 1 (``"scale"``: sqrt(d_model)) less
            ``weight_offset``.
        bias: Whether there is a learned bias. None: as the norm's torch module or paper has it, which is yes for layer,
            dyt and derf. There is none without ``affine``, as in torch.
        dropout: Probability of dropping an element of the branch while training.
        branch_bias: Whether a learned bias, initialised to 0, is added to the branch before dropout.
        layer_scale: Initial value of a learned scale per feature of the branch (LayerScale, Touvron et al. 2021,
            arXiv:2103.17239); None: no scale.
        drop_path: Probability of dropping a sample's whole branch while training (stochastic depth, Huang et al.
            2016, arXiv:1603.09382); samples are the first dimension.
        residual_scale: A number that multiplies the residual (DeepNorm's alpha).
        weight_offset: 1.0 for a weight stored around zero.
        out_dtype, stream_dtype, backend: As in `add_norm`.
        device, dtype: Of the parameters.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is allowed.

    >>> block = AddNorm(8, dropout=0.1)
    >>> block(torch.randn(2, 5, 8), torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        d_model: int,
        *,
        norm: str | Norm = "layer",
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool | None = None,
        dropout: float = 0.0,
        branch_bias: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        residual_scale: float = 1.0,
        weight_offset: float = 0.0,
        out_dtype: torch.dtype | None = None,
        stream_dtype: torch.dtype | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        norm = initial_policy(norm)
        kind = policy(norm)
        check_count("d_model", d_model)
        check_norm_options(eps=eps, bias=bias, weight_offset=weight_offset, backend=backend, dtype=dtype)
        check_switch("affine", affine)
        check_switch("branch_bias", branch_bias)
        if layer_scale is not None:
            check_number("layer_scale", layer_scale)
        check_dtype("out_dtype", out_dtype)
        check_dtype("stream_dtype", stream_dtype)
        check_probability("dropout", dropout)
        check_probability("drop_path", drop_path)
        check_number("residual_scale", residual_scale)
        if weight_offset != 0 and not affine:
            raise ValueError(f"weight_offset={weight_offset} is added to weight, but affine is False")
        self.d_model, self.norm, self.eps = d_model, kind.name, eps
        self._given, self._own, self._one_gain = norm, tuple(kind.own), kind.one_gain
        self.dropout, self.drop_path = dropout, drop_path
        self.residual_scale, self.weight_offset = residual_scale, weight_offset
        self.out_dtype, self.stream_dtype, self.backend = out_dtype, stream_dtype, backend
        self._initial_layer_scale = layer_scale
        has_bias = affine and (kind.bias_by_default if bias is None else bias)

        def parameter(wanted: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None

        self.weight = parameter(affine, 1 if kind.one_gain else d_model)
        self.bias, self.branch_bias = parameter(has_bias, d_model), parameter(branch_bias, d_model)
        self.layer_scale = parameter(layer_scale is not None, d_model)
        for name in self._own:
            self.register_parameter(name, parameter(True, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight so that the gain is the norm's initial one, biases to 0, and the rest as given."""
        kind = policy(self._given)
        if self.weight is not None:
            nn.init.constant_(self.weight, kind.initial_gain(self.d_model) - self.weight_offset)
        for name, value in kind.own.items():
            nn.init.constant_(getattr(self, name), float(value))
        for bias in (self.bias, self.branch_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        if self.layer_scale is not None and self._initial_layer_scale is not None:
            nn.init.constant_(self.layer_scale, self._initial_layer_scale)

    @property
    def gamma(self) -> Tensor | None:
        """What ``weight=`` of `add_norm` takes: the weight, for every column where it is one number."""
        weight = self.weight
        return weight if weight is None or not self._one_gain else weight.expand(self.d_model)

    @property
    def policy(self) -> str | Norm:
        """What ``norm=`` of `add_norm` takes: as given, or with this module's learned numbers."""
        if not self._own:
            return self._given
        return policy(self._given).with_own(**{name: getattr(self, name) for name in self._own})

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """y, of x's shape ``(..., d_model)``."""
        return self._run(add_norm, x, residual)

    def stream(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(y, stream): the normalised sum and the sum."""
        return self._run(add_norm_stream, x, residual)

    def _run(self, function: Callable[..., Any], x: Tensor, residual: Tensor | None) -> Any:
        gamma = self.gamma
        if gamma is None:  # which else is held to x's width
            check_width(x, self.d_model)
        return function(
            x,
            residual,
            gamma,
            self.bias,
            norm=self.policy,
            eps=self.eps,
            branch_bias=self.branch_bias,
            branch_scale=self.layer_scale,
            row_scale=self._path_scale(x, residual),
            residual_scale=self.residual_scale,
            dropout_p=self.dropout,
            training=self.training,
            weight_offset=self.weight_offset,
            out_dtype=self.out_dtype,
            stream_dtype=self.stream_dtype,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        rare = {  # shown where they are not the default
            "dropout": (self.dropout, 0),
            "drop_path": (self.drop_path, 0),
            "branch_bias": (self.branch_bias is not None, False),
            "layer_scale": (self._initial_layer_scale, None),
            "residual_scale": (self.residual_scale, 1),
            "weight_offset": (self.weight_offset, 0),
            "out_dtype": (self.out_dtype, None),
            "stream_dtype": (self.stream_dtype, None),
            "backend": (self.backend, None),
        }
        return (
            f"{self.d_model}, norm={self.norm!r}, eps={self.eps}, affine={self.weight is not None}, "
            f"bias={self.bias is not None}"
            + "".join(f", {name}={value!r}" for name, (value, default) in rare.items() if value != default)
        )

    def _path_scale(self, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """Stochastic depth's row scale, drawn once all is known to be well."""
        if not self.training or self.drop_path == 0:
            return None
        call = describe(
            x, residual, self.gamma, self.bias, norm=self.policy, branch_bias=self.branch_bias,
            branch_scale=self.layer_scale,
        )  # fmt: skip
        select(call, self.backend)  # or the error that says why not
        return path_scale(x, self.drop_path)


def check_norm_options(
    *, eps: float, bias: bool | None, weight_offset: float, backend: str | None, dtype: torch.dtype | None
) -> None:
    check_number("eps", eps, low=0.0)
    check_flag("bias", bias)
    check_number("weight_offset", weight_offset)
    if backend is not None:
        lookup("backend", backend, BACKENDS)
    check_dtype("dtype", dtype)


def check_width(x: Tensor, d_model: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type_name(x)}")
    if x.dim() == 0 or x.shape[-1] != d_model:
        raise ValueError(f"x has shape {tuple(x.shape)}: its last dimension must be d_model = {d_model}")


def path_scale(x: Tensor, drop_path: float) -> Tensor | None:
    """Stochastic depth's row scale, Bernoulli(keep) / keep: one number per sample; None where nothing is dropped.
    Half precision would round 1 / keep."""
    if drop_path == 0:
        return None
    keep = 1 - drop_path
    shape = (x.shape[0], *[1] * (x.dim() - 2)) if x.dim() > 1 else ()
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(shape, dtype=dtype).bernoulli_(keep).div_(keep)
