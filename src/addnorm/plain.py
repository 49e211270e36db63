"""What a plain call is: torch's own tensors, and nothing that watches; csrc/torch/plain.h in Python."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import forward_ad
from torch.nn import Parameter

PLAIN = (Tensor, Parameter)
# The keys that each thread includes by itself. A mode, a torch.func transform and a trace each add one of their own.
OWN_KEYS = DispatchKeySet(DispatchKey.BackendSelect).raw_repr() | DispatchKeySet(DispatchKey.ADInplaceOrView).raw_repr()


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
