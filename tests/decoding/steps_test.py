"""Which models decode with unrolled layers; the steps themselves are tested in unrolled_test.py."""

import doctest

from t5flan.decoding import steps
from tests.models.small_models import small_config, small_model


def test_many_layers_are_scanned():
    assert steps.unrolls(small_config('palm'))
    many = steps.UNROLLED_LAYERS + 1
    assert not steps.unrolls(small_config('palm', num_decoder_layers=many))
    assert len(steps.prepare(small_model('palm')).layers) == 2
    assert steps.prepare(small_model('palm', num_decoder_layers=many)) is None


def test_worked_examples():
    assert doctest.testmod(steps).failed == 0
