"""Which of two functions a step takes."""

import keras
import numpy as np
import pytest

from keras_vd._backend.branching import is_all_true

pytestmark = pytest.mark.core


def test_a_mask_is_looked_at_anew_when_it_has_changed():
    mask = keras.Variable(
        np.ones((3, 5), "bool"), trainable=False, dtype="bool"
    )
    assert bool(is_all_true(mask.value))
    changed = np.ones((3, 5), "bool")
    changed[2, 4] = False
    for _ in range(2):
        mask.assign(changed)
        assert not bool(is_all_true(mask.value))
        mask.assign(np.ones((3, 5), "bool"))
        assert bool(is_all_true(mask.value))
