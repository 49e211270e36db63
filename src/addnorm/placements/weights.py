"""The matrices of a sublayer by their role, and their initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..checks import check_count

Role = Literal["qk", "in", "out"]  # queries and keys; values and first matrices; output projections and last matrices
Matrices = dict[str, list[tuple[Tensor, Role]]]  # by name: the parts that have one role each

NAMES: dict[str, tuple[Role, ...]] = {
    **dict.fromkeys(("q", "q_proj", "query", "wq", "w_q", "to_q"), ("qk",)),
    **dict.fromkeys(("k", "k_proj", "key", "wk", "w_k", "to_k"), ("qk",)),
    **dict.fromkeys(("v", "v_proj", "value", "wv", "w_v", "to_v"), ("in",)),
    **dict.fromkeys(("fc1", "linear1", "lin1", "w1", "w_1", "w3", "wi", "wi_0", "wi_1"), ("in",)),
    **dict.fromkeys(("up_proj", "gate_proj", "c_fc"), ("in",)),
    **dict.fromkeys(("o", "o_proj", "out_proj", "out", "proj", "wo", "w_o", "to_out", "c_proj"), ("out",)),
    **dict.fromkeys(("fc2", "linear2", "lin2", "w2", "w_2", "down_proj"), ("out",)),
    **dict.fromkeys(("qkv", "in_proj", "qkv_proj", "c_attn", "wqkv", "to_qkv"), ("qk", "qk", "in")),  # rows in thirds
    "gate_up_proj": ("in", "in"),
}


@torch.no_grad()
def redraw(sublayers: Sequence[nn.Module], gains: Mapping[Role, float], rule: str) -> dict[str, float]:
    """Draws each matrix anew from Glorot's normal distribution with the gain of its role; all of them or none.

    Matrices are found by the last part of their name (`NAMES`). In an `nn.Sequential` without such names, or where the
    sublayer is a Linear, the last one is "out" and those before it are "in". Embeddings and other tables, which
    multiply nothing, have no role. A sublayer without parameters has nothing to draw.

    Returns:
        The largest gain drawn with, by ``"sublayer.parameter"``.

    Raises:
        ValueError: where a sublayer lacks a matrix to scale or has one of unknown role, or no sublayer has parameters.
    """
    found = [
        complete(matrices(sublayer), sublayer, f"initialise(): {rule} scales matrices by their role, and sublayer {i}")
        for i, sublayer in enumerate(sublayers)
    ]
    if not any(found):
        raise ValueError(f"initialise(): {rule} scales matrices, and the sublayers have no parameters")
    for parts in (parts for weights in found for parts in weights.values()):
        for part, role in parts:
            nn.init.xavier_normal_(part, gain=gains[role])
    return {
        f"{index}.{name}": max(gains[role] for _, role in parts)
        for index, weights in enumerate(found)
        for name, parts in weights.items()
    }


def matrices(sublayer: nn.Module) -> Matrices:
    """The matrices that have a role, by name."""
    named = {name: weight for name, weight in sublayer.named_parameters() if weight.dim() == 2}
    roles = {name: NAMES.get(name.removesuffix(".weight").removesuffix("_weight").split(".")[-1]) for name in named}
    found: dict[str, tuple[Role, ...]] = {name: known for name, known in roles.items() if known is not None}
    if not found and isinstance(sublayer, (nn.Sequential, nn.Linear)):
        linears = [f"{name}.weight".lstrip(".") for name, m in sublayer.named_modules() if isinstance(m, nn.Linear)]
        found = {name: ("out",) if name == linears[-1] else ("in",) for name in linears if name in named}
    last = [named[name] for name, known in found.items() if known == ("out",)]
    return {name: split(name, named[name], known, last) for name, known in found.items()}


def split(name: str, weight: Tensor, roles: Sequence[Role], last: Sequence[Tensor]) -> list[tuple[Tensor, Role]]:
    """One part for each role: of the rows, or of the columns where the weight is stored (in, out), as GPT-2's is.
    Each is as wide as what the last matrices take."""
    if len(roles) == 1:
        return [(weight, roles[0])]
    columns = weight.shape[1] == len(roles) * weight.shape[0]
    size, rest = divmod(weight.shape[int(columns)], len(roles))
    inner = [out.shape[int(not columns)] for out in last]
    if rest or (inner and size not in inner):
        raise ValueError(f"initialise(): matrices of different sizes are packed in {name}: part them")
    return list(zip(weight.split(size, dim=int(columns)), roles, strict=True))


def complete(found: Matrices, sublayer: nn.Module, what: str) -> Matrices:
    """The same, where nothing is missing: with queries there are values, with those or a first matrix a last one, and
    every matrix has a role."""
    held = ", ".join(name for name, _ in sublayer.named_parameters())
    if not held:
        return {}
    what = f"{what} ({type(sublayer).__name__})"
    if not found:
        raise ValueError(f"{what} has none with a known name: it has {held}; known are {', '.join(NAMES)}")
    parts = [part for parts in found.values() for part in parts]
    roles = {role for _, role in parts}
    missing = [role for role, others in (("in", {"qk"}), ("out", {"qk", "in"})) if roles & others and role not in roles]
    if missing:
        known = ", ".join(name for name, known in NAMES.items() if known == (missing[0],))
        raise ValueError(f"{what} has none of {known}: it has {held}")
    tables = {f"{name}.weight" for name, module in sublayer.named_modules() if isinstance(module, nn.Embedding)}
    for name, weight in sublayer.named_parameters():
        if weight.dim() == 2 and "weight" in name and name not in tables and name not in found:
            raise ValueError(f"{what} has {name}, whose role is not known; known names are {', '.join(NAMES)}")
    return found


def check_roles(decoder_layers: int | None, encoder_layers: int | None) -> None:
    """A stack is the encoder of a model (its decoder's depth is given), the decoder, or the whole."""
    if decoder_layers is not None and encoder_layers is not None:
        raise ValueError(
            "decoder_layers makes this stack an encoder and encoder_layers a decoder: give at most one of them"
        )
    for name, layers in (("decoder_layers", decoder_layers), ("encoder_layers", encoder_layers)):
        if layers is not None:
            check_count(name, layers)
