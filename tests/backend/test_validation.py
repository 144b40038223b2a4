from __future__ import annotations

import math

import numpy as np
import pytest

from keras_vd._backend.validation import (
    check_array,
    check_choice,
    check_integer,
    check_number,
)


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (3, {}, 3.0),
        (0.0, {"minimum": 0.0}, 0.0),
        (1.0, {"minimum": 0.0, "maximum": 1.0}, 1.0),
        (1e-9, {"minimum": 0.0, "exclusive": True}, 1e-9),
        (np.float32(0.5), {}, 0.5),
        (np.int64(2), {}, 2.0),
    ],
)
def test_good_numbers(value, options, expected):
    number = check_number("rate", value, **options)
    assert number == expected
    assert type(number) is float


@pytest.mark.parametrize("value", [True, "1", None, [1.0], 1j, np.ones(1)])
def test_not_a_number(value):
    with pytest.raises(TypeError, match="Argument `rate`") as error:
        check_number("rate", value)
    assert f"rate={value!r}" in str(error.value)
    assert type(value).__name__ in str(error.value)


@pytest.mark.parametrize(
    ("value", "options", "allowed"),
    [
        (math.nan, {}, "a finite number."),
        (math.inf, {}, "a finite number."),
        (-math.inf, {"maximum": 1.0}, "a finite number at most 1."),
        (-0.1, {"minimum": 0.0}, "a finite number at least 0."),
        (0, {"minimum": 0.0, "exclusive": True}, "number greater than 0."),
        (3, {"minimum": 0.0, "maximum": 2.5}, "at least 0 and at most 2.5."),
        (math.nan, {"minimum": 0.0, "maximum": 1.0}, "and at most 1."),
    ],
)
def test_numbers_out_of_range(value, options, allowed):
    with pytest.raises(ValueError, match="Argument `rate`") as error:
        check_number("rate", value, **options)
    assert f"must be {allowed}" in str(error.value) or allowed in str(
        error.value
    )
    assert f"rate={value!r}" in str(error.value)


def test_integers():
    number = check_integer("units", np.int32(4), minimum=1)
    assert number == 4
    assert type(number) is int
    assert check_integer("units", 1, minimum=1) == 1


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-3, ValueError), (1.0, TypeError), (True, TypeError)],
)
def test_bad_integers(value, error):
    with pytest.raises(error, match="`units` must be an integer of") as caught:
        check_integer("units", value, minimum=1)
    assert "at least 1" in str(caught.value)
    assert f"units={value!r}" in str(caught.value)


def test_choices():
    assert check_choice("share", "unit", ("weight", "unit")) == "unit"


@pytest.mark.parametrize("value", ["row", None, ["unit"], 1])
def test_bad_choices(value):
    with pytest.raises(ValueError, match="Argument `share`") as error:
        check_choice("share", value, ("weight", "unit"))
    assert "['weight', 'unit']" in str(error.value)
    assert f"share={value!r}" in str(error.value)


@pytest.mark.parametrize(
    "value",
    [3, [True, False], [[1, 2], [3, 4]], np.ones((2, 1), "float16")],
)
def test_good_arrays(value):
    array = check_array("scores", value)
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, np.asarray(value))


@pytest.mark.parametrize(
    ("value", "received"),
    [
        ([], r"shape \(0,\)"),
        ([1.0, np.nan, -np.inf], "2 of 3 NaN or infinite"),
        (None, "NaN or infinite"),
        (["1"], r"\['1'\]"),
        ([1j], r"\[1j\]"),
        ([[1.0], 2.0], r"\[\[1.0\], 2.0\]"),
        (np.array(["2020-01-01"], "datetime64[D]"), "2020"),
    ],
)
def test_arrays_that_are_refused(value, received):
    message = (
        f"`scores` must be an array of finite numbers.*Received.*{received}"
    )
    with pytest.raises(ValueError, match=message):
        check_array("scores", value)
