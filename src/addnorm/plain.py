"""What a plain call is: torch's own tensors, and nothing that watches; csrc/torch/plain.h in Python."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import forward_ad
from torch.nn import Parameter

PLAIN = (Tensor, Parameter)
ALIGNED = 16  # bytes
# The keys that each thread includes by itself. A mode, a torch.func transform and a trace each add one of their own.
OWN_KEYS = DispatchKeySet(DispatchKey.BackendSelect).raw_repr() | DispatchKeySet(DispatchKey.ADInplaceOrView).raw_repr()


def is_recording() -> bool:
    """Whether autograd records calls: not where torch passes it over, as inside ``torch.inference_mode()``, which
    ``torch.enable_grad()`` does not change, and in ``__torch_dispatch__``. Dynamo can not trace that question."""
    return torch.is_grad_enabled() and (torch.compiler.is_dynamo_compiling() or not is_below_autograd())


def is_below_autograd() -> bool:
    return torch._C._dispatch_tls_is_dispatch_key_excluded(DispatchKey.AutogradFunctionality)


def wants_grad(*tensors: Any) -> bool:
    """Whether a call here and now keeps what the gradients of tensors need; what is no tensor has none."""
    return is_recording() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def is_plain_thread() -> bool:
    """Whether no mode, transform, trace or forward-mode AD is on. Not to be asked while Dynamo compiles."""
    return (
        not torch._C._dispatch_tls_local_include_set().raw_repr() & ~OWN_KEYS
        and not torch._C._len_torch_function_stack()
        and forward_ad._current_level < 0
    )


def is_plain(t: Tensor) -> bool:
    """Whether a dense tensor is what its memory holds: no subclass, no pending sign, no zeros without memory."""
    return type(t) in PLAIN and not t.is_neg() and not t._is_zerotensor()


def kinds(tensors: tuple[Any, ...]) -> tuple[Any, list[int | None]] | None:
    """What a prepared launch depends on of its tensors, and where they lie; None where one is not contiguous, not
    aligned or not plainly torch's own. csrc/torch/kinds.cpp in Python."""
    found: list[Any] = []
    addresses: list[int | None] = []
    try:
        for t in tensors:
            if t is None:
                found.append(None)
                addresses.append(None)
                continue
            if not is_plain(t) or t.layout != torch.strided or not t.is_contiguous():
                return None
            address = t.data_ptr()
            if address % ALIGNED or not address or not t.untyped_storage().nbytes():
                return None
            found += t.dtype, t.shape, t.device, t.requires_grad
            addresses.append(address)
    except RuntimeError:  # nested, batched, functional: with no memory of its own
        return None
    return tuple(found), addresses
