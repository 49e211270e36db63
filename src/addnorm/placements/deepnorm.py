"""DeepNorm: post-norm with a scaled skip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .base import Placement, Settings, Site, State
from .weights import check_roles, redraw


class DeepNorm(Placement):
    """x <- N(alpha x + drop(f(x))), with gain beta on the initialisation of values, output projections and both
    matrices of the feed-forward network, so that an update of the weights changes the model by a bounded amount
    at any depth::

        one stack of N layers                    alpha = (2N)^(1/4)            beta = (8N)^(-1/4)
        encoder of N, its decoder having M       alpha = 0.81 (N^4 M)^(1/16)   beta = 0.87 (N^4 M)^(-1/16)
        decoder of M layers with an encoder      alpha = (3M)^(1/4)            beta = (12M)^(-1/4)

    When to choose it: post-norm's quality in deep models, to a thousand layers. What it costs: as post-norm.

    Args:
        decoder_layers: M, where this is the encoder of an encoder-decoder model.
        encoder_layers: N, where this is the decoder of one.

    Source: Wang et al. 2022 (arXiv:2203.00555).
    """

    name = "deepnorm"
    ends_in_norm = False
    d_model_before = False
    d_model_after = True
    needs_depth = True

    def __init__(
        self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None, *,
        decoder_layers: int | None = None, encoder_layers: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(sites, settings, final_norm)
        self.norms = self.new_norms()
        layers = self.sites[0].layers
        assert layers is not None
        self.alpha, self.beta = constants(layers, decoder_layers=decoder_layers, encoder_layers=encoder_layers)

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return x, x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        y = self.add_norm(branch, state, self.norms[site.index], site, residual_scale=self.alpha)
        return y, y

    def finish(self, state: State) -> Tensor:
        return state if self.final_norm is None else self.final_norm(state)

    def initialise(self, sublayers: Sequence[nn.Module], run: Callable[[], object] | None) -> dict[str, float]:
        return redraw(sublayers, {"qk": 1.0, "in": self.beta, "out": self.beta}, "deepnorm")

    def algebra(self) -> tuple[str, ...]:
        return (f"x <- N({self.alpha:.6g} x + drop(f(x)))", f"initialise(): gain {self.beta:.6g} on v, o, fc1, fc2")


def constants(
    layers: int, *, decoder_layers: int | None = None, encoder_layers: int | None = None
) -> tuple[float, float]:
    """alpha and beta of a stack of so many layers (the paper's table 2).

    >>> constants(12)[0] == 24 ** 0.25
    True
    """
    check_roles(decoder_layers, encoder_layers)
    if decoder_layers is not None:
        size = (layers**4 * decoder_layers) ** (1 / 16)
        return 0.81 * size, 0.87 / size
    if encoder_layers is not None:
        return (3 * layers) ** 0.25, (12 * layers) ** -0.25
    return (2 * layers) ** 0.25, (8 * layers) ** -0.25
