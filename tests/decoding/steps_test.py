"""Which models decode with unrolled layers; the steps themselves are tested in unrolled_test.py."""

import doctest
import gc
import weakref

import numpy as np

from t5flan.decoding import steps
from tests.models.small_models import small_config, small_model


def test_many_layers_are_scanned():
    assert steps.unrolls(small_config('palm'))
    many = steps.UNROLLED_LAYERS + 1
    assert not steps.unrolls(small_config('palm', num_decoder_layers=many))
    assert len(steps.prepare(small_model('palm')).layers) == 2
    assert steps.prepare(small_model('palm', num_decoder_layers=many)) is None


def test_layers_are_prepared_once_for_a_model():
    model = small_model('palm')
    layers = steps.prepare(model)
    assert steps.prepare(model) is layers
    other = small_model('palm')
    assert steps.prepare(other) is not layers


def test_a_changed_parameter_prepares_them_again():
    model = small_model('palm')
    before = steps.prepare(model)
    kernel = model.decoder.layers.mlp.wo.kernel
    kernel[...] = 2 * kernel[...]
    after = steps.prepare(model)
    np.testing.assert_array_equal(after.layers[1].kernels[-1], 2 * before.layers[1].kernels[-1])


def test_they_are_deleted_with_the_model():
    model = small_model('palm')
    kernel = weakref.ref(steps.prepare(model).layers[0].kernels[0])
    assert kernel() is not None
    del model
    gc.collect()
    assert kernel() is None


def test_worked_examples():
    assert doctest.testmod(steps).failed == 0
