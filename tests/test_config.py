"""Config: the derived sizes, and an error for every rule that is broken."""

from __future__ import annotations

import dataclasses
import re

import pytest

from llama2c.config import DIMENSIONS, Config, RopeScaling

GOOD = Config(96, 192, 3, 6, 2, 320, 48)


def test_derived_sizes() -> None:
    assert (GOOD.head_size, GOOD.q_dim, GOOD.kv_dim) == (16, 96, 32)
    assert (GOOD.rope_theta, GOOD.norm_eps) == (10000.0, 1e-5)


def test_a_given_head_size_need_not_divide_dim() -> None:
    config = Config(100, 192, 3, 6, 2, 320, 48, head_size=8)
    assert (config.head_size, config.q_dim, config.kv_dim) == (8, 48, 16)


def test_the_largest_dimension() -> None:
    assert dataclasses.replace(GOOD, vocab_size=2**31 - 1).vocab_size == 2**31 - 1


def test_config_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.dim = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", [*DIMENSIONS, "head_size"])
@pytest.mark.parametrize("value", [-1, 2**31, -(2**31)])
def test_every_dimension_is_positive_and_below_2_to_the_31(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected an integer from 1 to 2147483647, found {value}$"):
        dataclasses.replace(GOOD, **{name: value})


@pytest.mark.parametrize("name", DIMENSIONS)
def test_no_dimension_is_zero(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected an integer from 1 to 2147483647, found 0$"):
        dataclasses.replace(GOOD, **{name: 0})


@pytest.mark.parametrize("name", [*DIMENSIONS, "head_size"])
@pytest.mark.parametrize("value", [64.0, "64", True, None])
def test_a_dimension_is_an_int(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{name}: expected an integer, found {type(value).__name__}")):
        dataclasses.replace(GOOD, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((96, 192, 3, 6, 4), "n_kv_heads: expected a divisor of n_heads = 6, found 4"),
        ((96, 192, 3, 6, 12), "n_kv_heads: expected a divisor of n_heads = 6, found 12"),
        ((96, 192, 3, 5, 5), "n_heads: expected a divisor of dim = 96, found 5"),
        ((96, 192, 3, 192, 2), "n_heads: expected a divisor of dim = 96, found 192"),
        ((96, 192, 3, 32, 2), "head_size: expected an even number, found 3"),
    ],
)
def test_sizes_fit_each_other(sizes: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Config(*sizes, 320, 48)


@pytest.mark.parametrize("name", ["rope_theta", "norm_eps"])
def test_theta_and_eps_are_finite_and_positive(name: str) -> None:
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"^{name}: expected a finite positive number, found {value}$"):
            dataclasses.replace(GOOD, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"^{name}: expected a number, found str$"):
        dataclasses.replace(GOOD, **{name: "1"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{name}: expected a finite positive number, found an integer beyond all floats$"):
        dataclasses.replace(GOOD, **{name: 10**400})  # type: ignore[arg-type]  # JSON has numbers beyond all floats


def test_rope_scaling() -> None:
    with pytest.raises(TypeError, match=r"^rope_scaling: expected a RopeScaling or None, found dict$"):
        dataclasses.replace(GOOD, rope_scaling={"factor": 8})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^rope_type: expected linear or llama3, found 'yarn'$"):
        RopeScaling("yarn", 8.0)
    with pytest.raises(ValueError, match=r"^factor: expected a finite positive number, found 0.0$"):
        RopeScaling("linear", 0)
    with pytest.raises(TypeError, match=r"^low_freq_factor: expected a number, found NoneType$"):
        RopeScaling("llama3", 8.0)
    with pytest.raises(ValueError, match=r"^high_freq_factor: expected more than low_freq_factor = 4, found 4$"):
        RopeScaling("llama3", 8.0, 4, 4, 8192)
    with pytest.raises(ValueError, match=r"^high_freq_factor: expected none for rope_type linear, found 4$"):
        RopeScaling("linear", 8.0, high_freq_factor=4)
