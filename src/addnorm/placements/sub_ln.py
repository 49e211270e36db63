"""Sub-LN: pre-norm with a norm inside each sublayer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from .base import Placement, Settings, Site, State
from .weights import check_roles, redraw


class SubLN(Placement):
    """h <- h + drop(W_out M(g(N(h)))): pre-norm with a second norm inside each sublayer, before its last matrix, and
    one norm at the end. The initialisation of values, output projections and both matrices of the feed-forward network
    has the gain::

        one stack of N layers                  sqrt(ln 2N)
        encoder of N, its decoder having M     sqrt(ln(3M) ln(2N) / 3)
        decoder of M layers with an encoder    sqrt(ln 3M)

    When to choose it: one recipe for language, vision and speech, with larger learning rates. What it costs: pre-norm's
    pass, and a norm inside each sublayer. The sublayers offer ``inner_norm = addnorm.Slot(width)``.

    Args:
        decoder_layers: M, where this is the encoder of an encoder-decoder model.
        encoder_layers: N, where this is the decoder of one.

    Source: Wang et al. 2022 (Magneto, arXiv:2210.06423).
    """

    name = "sub_ln"
    ends_in_norm = True
    needs_depth = True
    slots: ClassVar = {"attention": ("inner_norm",), "ffn": ("inner_norm",)}

    def __init__(
        self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None, *,
        decoder_layers: int | None = None, encoder_layers: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(sites, settings, final_norm)
        self.norms = self.new_norms()
        layers = self.sites[0].layers
        assert layers is not None
        self.gain = gain(layers, decoder_layers=decoder_layers, encoder_layers=encoder_layers)

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return self.norms[0](x), x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        return self.pass_on(branch, state, site, self.next_norm(self.norms, site))

    def initialise(self, sublayers: Sequence[nn.Module], run: Callable[[], object] | None) -> dict[str, float]:
        return redraw(sublayers, {"qk": 1.0, "in": self.gain, "out": self.gain}, "sub_ln")

    def algebra(self) -> tuple[str, ...]:
        return (
            "h <- h + drop(f(N(h))), f with a norm before its last matrix",
            f"initialise(): gain {self.gain:.6g} on v, o, fc1, fc2",
        )


def gain(layers: int, *, decoder_layers: int | None = None, encoder_layers: int | None = None) -> float:
    """
    >>> round(gain(12) ** 2, 4)  # ln 24
    3.1781
    """
    check_roles(decoder_layers, encoder_layers)
    if decoder_layers is not None:
        return math.sqrt(math.log(3 * decoder_layers) * math.log(2 * layers) / 3)
    return math.sqrt(math.log((2 if encoder_layers is None else 3) * layers))
