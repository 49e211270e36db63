"""Every placement as a plain loop, written straight from its paper's formula, with nothing of the library in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from addnorm import Slot

EPS = 1e-5
Layer = tuple["Mixer", "Mixer"]
N = Callable[[Tensor], Tensor]


class Mixer(nn.Module):
    """A small sublayer with all slots; the loops call `formula`, which takes the norms of its slots."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.inner_norm = nn.Linear(d, hidden), nn.Linear(hidden, d), Slot(hidden)
        self.q_norm, self.k_norm, self.v_norm = Slot(d), Slot(d), Slot(d)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, self.inner_norm, self.q_norm, self.k_norm, self.v_norm)

    def formula(self, x: Tensor, inner: N, q: N, k: N, v: N) -> Tensor:
        mixed = (q(x) * k(x).mean(-2, keepdim=True)).tanh() + v(x)
        return self.fc2(inner(self.fc1(mixed).tanh()))


def same(x: Tensor) -> Tensor:
    return x


def norm(holder: Any) -> N:
    """LayerNorm with a module's weight and bias."""
    weight, bias = holder.weight, holder.bias

    def apply(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return weight * centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() + bias

    return apply


def norms(holders: Iterable[Any]) -> list[N]:
    return [norm(holder) for holder in holders]


def plain(f: Mixer) -> N:
    return lambda x: f.formula(x, same, same, same, same)


def with_inner(f: Mixer) -> N:
    return lambda x: f.formula(x, norm(f.inner_norm.norm), same, same, same)


def post(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for f, ln in zip(fs, norms(p.norms), strict=True):
        x = ln(x + plain(f)(x))
    return x


def deepnorm(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    alpha = (2 * len(fs) / 2) ** 0.25
    for f, ln in zip(fs, norms(p.norms), strict=True):
        x = ln(alpha * x + plain(f)(x))
    return x


def pre(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for f, ln in zip(fs, norms(p.norms), strict=True):
        x = x + plain(f)(ln(x))
    return norm(p.final_norm)(x)


def sub_ln(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for f, ln in zip(fs, norms(p.norms), strict=True):
        x = x + with_inner(f)(ln(x))
    return norm(p.final_norm)(x)


def sandwich(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for f, ln, out in zip(fs, norms(p.norms), norms(p.out_norms), strict=True):
        x = x + out(plain(f)(ln(x)))
    return norm(p.final_norm)(x)


def peri(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    return sandwich(norm(p.first_norm)(x), fs, p)


def normformer(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    lns = norms(p.norms)
    for i in range(0, len(fs), 2):
        x = x + norm(p.out_norms[str(i)])(plain(fs[i])(lns[i](x)))
        x = x + with_inner(fs[i + 1])(lns[i + 1](x))
    return norm(p.final_norm)(x)


def residual_dual(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    dual = x
    for f, ln in zip(fs, norms(p.norms), strict=True):
        branch = plain(f)(x)
        x, dual = ln(x + branch), dual + branch
    return x + norm(p.final_norm)(dual)


def layernorm_scaling(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for i, (f, ln) in enumerate(zip(fs, norms(p.norms), strict=True)):
        x = x + plain(f)(ln(x) / math.sqrt(i // 2 + 1))
    return norm(p.final_norm)(x)


def mix_ln(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for i, (f, ln) in enumerate(zip(fs, norms(p.norms), strict=True)):
        x = ln(x + plain(f)(x)) if i // 2 < len(fs) // 2 // 4 else x + plain(f)(ln(x))
    return norm(p.final_norm)(x)


def b2t(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    lns = norms(p.norms)
    for i in range(0, len(fs), 2):
        h = lns[i](x + plain(fs[i])(x))
        x = lns[i + 1](x + h + plain(fs[i + 1])(h))
    return x


def parallel(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for i, ln in enumerate(norms(p.norms)):
        n = ln(x)
        x = x + plain(fs[2 * i])(n) + plain(fs[2 * i + 1])(n)
    return norm(p.final_norm)(x)


def rezero(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for f, a in zip(fs, p.scales, strict=True):
        x = x + a * plain(f)(x)
    return x


def layerscale(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for f, ln, scale in zip(fs, norms(p.norms), p.scales, strict=True):
        x = x + scale * plain(f)(ln(x))
    return norm(p.final_norm)(x)


def hybrid_norm(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for i in range(0, len(fs), 2):
        q, k, v = (norm(slot.norm) for slot in (fs[i].q_norm, fs[i].k_norm, fs[i].v_norm))
        n = norm(p.norms[str(i)])(x + fs[i].formula(x, same, q, k, v))
        x = n + plain(fs[i + 1])(n)
    return norm(p.final_norm)(x)


def admin(x: Tensor, fs: Sequence[Mixer], p: Any) -> Tensor:
    for f, ln, omega in zip(fs, norms(p.norms), p.scales, strict=True):
        x = ln(omega * x + plain(f)(x))
    return x


LOOPS: dict[str, Callable[[Tensor, Sequence[Mixer], Any], Tensor]] = {
    loop.__name__: loop
    for loop in (post, pre, deepnorm, sandwich, peri, sub_ln, normformer, residual_dual, layernorm_scaling, mix_ln,
                 b2t, parallel, rezero, layerscale, hybrid_norm, admin)
}  # fmt: skip
