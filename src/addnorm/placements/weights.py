"""The matrices of a sublayer by their role, and their initialisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Role = Literal["qk", "in", "out"]  # queries and keys; values and first matrices; output projections and last matrices

NAMES: dict[str, tuple[Role, ...]] = {
    **dict.fromkeys(("q", "q_proj", "query", "wq", "w_q", "to_q"), ("qk",)),
    **dict.fromkeys(("k", "k_proj", "key", "wk", "w_k", "to_k"), ("qk",)),
    **dict.fromkeys(("v", "v_proj", "value", "wv", "w_v", "to_v"), ("in",)),
    **dict.fromkeys(("fc1", "linear1", "lin1", "w1", "w_1", "up_proj", "gate_proj", "c_fc"), ("in",)),
    **dict.fromkeys(("o", "o_proj", "out_proj", "out", "proj", "wo", "w_o", "to_out", "c_proj"), ("out",)),
    **dict.fromkeys(("fc2", "linear2", "lin2", "w2", "w_2", "down_proj"), ("out",)),
    **dict.fromkeys(("qkv", "in_proj", "qkv_proj", "c_attn", "wqkv", "to_qkv"), ("qk", "qk", "in")),  # rows in thirds
}


def redraw(sublayers: Sequence[nn.Module], gains: Mapping[Role, float], rule: str) -> dict[str, float]:
    """Draws each matrix anew from Glorot's normal distribution with the gain of its role.

    Matrices are found by the last part of their name (`NAMES`); in an `nn.Sequential`, or where the sublayer is a
    Linear, the last one is "out" and those before it are "in". A sublayer without parameters has nothing to draw.

    Returns:
        The largest gain drawn with, by ``"sublayer.parameter"``.

    Raises:
        ValueError: where a sublayer has parameters and none has a known role, or no sublayer has any.
    """
    drawn: dict[str, float] = {}
    for index, sublayer in enumerate(sublayers):
        found = list(matrices(sublayer))
        if not found and any(True for _ in sublayer.parameters()):
            held = ", ".join(name for name, _ in sublayer.named_parameters())
            raise ValueError(
                f"initialise(): {rule} scales matrices by their role, and sublayer {index} "
                f"({type(sublayer).__name__}) has none with a known name: it has {held}; known are {', '.join(NAMES)}"
            )
        for name, weight, roles in ((name, weight, roles) for name, (weight, roles) in found):
            draw(weight, [gains[role] for role in roles])
            drawn[f"{index}.{name}"] = max(gains[role] for role in roles)
    if not drawn:
        raise ValueError(f"initialise(): {rule} scales matrices, and the sublayers have no parameters")
    return drawn


def matrices(sublayer: nn.Module) -> Iterator[tuple[str, tuple[Tensor, tuple[Role, ...]]]]:
    """The matrices that have a role, by name."""
    if isinstance(sublayer, (nn.Sequential, nn.Linear)):
        linears = [(name, m) for name, m in sublayer.named_modules() if isinstance(m, nn.Linear)]
        for place, (name, linear) in enumerate(linears, start=1):
            role: Role = "out" if place == len(linears) else "in"
            yield f"{name}.weight".lstrip("."), (linear.weight, (role,))
        return
    for name, weight in sublayer.named_parameters():
        roles = NAMES.get(name.removesuffix(".weight").removesuffix("_weight").split(".")[-1])
        if roles is not None and weight.dim() == 2:
            yield name, (weight, roles)


@torch.no_grad()
def draw(weight: Tensor, gains: Sequence[float]) -> None:
    """Each part of the rows with its gain, as a matrix of its own."""
    for part, gain in zip(weight.chunk(len(gains)), gains, strict=True):
        nn.init.xavier_normal_(part, gain=gain)


def check_roles(decoder_layers: int | None, encoder_layers: int | None) -> None:
    """A stack is the encoder of a model (its decoder's depth is given), the decoder, or the whole."""
    if decoder_layers is not None and encoder_layers is not None:
        raise ValueError(
            "decoder_layers makes this stack an encoder and encoder_layers a decoder: give at most one of them"
        )
    for name, layers in (("decoder_layers", decoder_layers), ("encoder_layers", encoder_layers)):
        if layers is not None and layers < 1:
            raise ValueError(f"{name} must be at least 1, got {layers}")
