"""`Residual` and `Stack`: what is refused, and how it is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm import Residual, Stack

from .test_stack import D, linears


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize("value", [None, (), (None, 1), [torch.ones(2, D)], {"x": torch.ones(2, D)}])
def test_what_is_no_tensor_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"the sublayer \(Returns\) must return a tensor, or a tuple whose first"):
        Residual(Returns(value), D)(torch.ones(2, D))
    with pytest.raises(TypeError, match=r"sublayer 1 \(Returns\) must return a tensor"):
        Stack([nn.Identity(), Returns(value)], D)(torch.ones(2, D))


def test_of_a_tuple_without_a_tensor_both_types_are_named() -> None:
    with pytest.raises(TypeError, match="got tuple of tuple and Tensor"):
        Residual(Returns(((), torch.ones(1))), D)(torch.ones(2, D))


def test_a_sublayer_that_needs_more_than_x_says_what_and_how() -> None:
    attention, x = nn.MultiheadAttention(D, 2, batch_first=True), torch.randn(2, 5, D)
    takes = r"query, key, value, \[key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal\]"
    with pytest.raises(TypeError, match=r"^the sublayer \(MultiheadAttention\) is called with x: missing .* 'key'"):
        Residual(attention, D)(x)
    with pytest.raises(TypeError, match=rf"Its forward takes {takes}\. ") as error:
        Stack([attention, nn.ReLU()], D)(x)
    names: dict[str, Any] = {"MultiheadAttention": nn.MultiheadAttention}
    exec("\n".join(str(error.value).splitlines()[1:]), names)  # what the message proposes
    wrapped = names["OfOne"](D, 2, batch_first=True)
    wrapped.load_state_dict(attention.state_dict())
    torch.testing.assert_close(Residual(wrapped, D)(x)[0], Residual(attention, D)(x, x, x)[0])
    assert Stack([wrapped, nn.ReLU()], D)(x).shape == x.shape


def test_a_sublayer_that_does_not_know_an_argument_is_named() -> None:
    with pytest.raises(TypeError, match=r"sublayer 0 \(Linear\) is called with x and mask: got an unexpected .*'mask'"):
        Stack(linears(), D)(torch.ones(2, D), mask=None)


def test_a_sublayer_s_own_type_error_stays_as_it_is() -> None:
    with pytest.raises(TypeError, match=r"missing 2 required positional arguments: 'key' and 'value'$"):
        Residual(nn.Sequential(nn.MultiheadAttention(D, 2)), D)(torch.ones(2, D))


@pytest.mark.parametrize("shape", [(2, 9), (1, D), (D,), (2, 1, D)])
def test_another_shape_is_refused_and_both_are_named(shape: tuple[int, ...]) -> None:
    """Also what broadcasting would let pass."""
    with pytest.raises(ValueError, match="where the skip has") as error:
        Residual(Returns(torch.ones(shape)), D)(torch.ones(2, D))
    assert str(shape) in str(error.value)
    assert str((2, D)) in str(error.value)
    with pytest.raises(ValueError, match="sublayer 0"):
        Stack([Returns(torch.ones(shape))] * 2, D)(torch.ones(2, D))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sublayers": []}, "0 sublayers can not make whole layers of sublayers_per_layer=2"),
        ({"sublayers": linears(3)}, "3 sublayers can not make whole layers"),
        ({"sublayers": [nn.ReLU(), torch.relu]}, r"sublayers\[1\] must be a torch.nn.Module, got builtin"),
        ({"sublayers": nn.Linear(D, D)}, "sublayers must be an iterable of torch.nn.Module, got Linear"),
        ({"final_norm": "yes"}, "final_norm must be True, False or None, got str"),
        ({"bias": "no"}, "bias must be True, False or None, got str"),
        ({"norm": "batch", "placement": "rezero"}, "norm='batch' is unknown; there are: 'layer', 'rms'"),
        ({"placement": "layerscale", "initial": "a"}, "initial must be a number, got str"),
        ({"placement": "mix_ln", "post_fraction": "a"}, "post_fraction must be a number, got str"),
        ({"placement": "deepnorm", "decoder_layers": 1.5}, "decoder_layers must be an int, got float"),
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"d_model": 8.0}, "d_model must be an int, got float"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, r"drop_path must be in \[0, 1\)"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"sublayers_per_layer": 0}, "sublayers_per_layer must be at least 1"),
        ({"eps": -1.0}, "eps must be a finite number >= 0"),
        ({"eps": -1.0, "placement": "rezero"}, "eps must be a finite number >= 0"),
        ({"bias": "a", "placement": "rezero"}, "bias must be True, False or None, got str"),
        ({"weight_offset": "a", "placement": "rezero"}, "weight_offset must be a number, got str"),
        ({"backend": "gpu", "placement": "rezero"}, "backend='gpu' is unknown"),
        ({"dtype": torch.int8, "placement": "rezero"}, "dtype must be None, .*got torch.int8"),
        ({"dtype": torch.complex64}, "dtype must be None, .*got torch.complex64"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Stack(**{"sublayers": linears(), "d_model": D, **given})


def test_widths_that_do_not_fit() -> None:
    for module in (Residual(nn.Linear(D, D), D), Stack(linears(), D)):
        with pytest.raises(ValueError, match=r"x has shape \(2, 9\): its last dimension must be d_model = 8"):
            module(torch.ones(2, 9))
        with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
            module([1.0])
    with pytest.raises(ValueError, match="layer must be at least 0, got -1"):
        Residual(nn.Linear(D, D), D, layer=-1)
    with pytest.raises(ValueError, match="layer must be from 0 to depth - 1 = 2, got 3"):
        Residual(nn.Linear(D, D), D, depth=3, layer=3)
    with pytest.raises(ValueError, match=r"drop_path grows with the layer.*: pass depth= with layer="):
        Residual(nn.Linear(D, D), D, layer=3, drop_path=0.5)
    with pytest.raises(TypeError, match=r"sublayer must be a torch.nn.Module"):
        Residual(torch.relu, D)  # pyright: ignore[reportArgumentType]
