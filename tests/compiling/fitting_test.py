"""Suggestions for a step that does not fit."""

from t5flan.compiling.fitting import changes_that_fit
from tests.compiling.step_test import settings_of

SMALL = ["ModelConfig.remat='none'", 'DataConfig.batch_size=64', 'MeshConfig.data=8']


def test_each_kind_of_change_that_saves_enough_is_named_once():
    settings = settings_of(*SMALL)
    found = changes_that_fit(settings, 8, needed=10**9, limit=10**9 - 1)
    assert found == [
        "ModelConfig.remat='minimal'",
        'OptimizerConfig.microbatches=2',
        'MeshConfig.data=4 and MeshConfig.fsdp=2',
    ]


def test_nothing_is_named_that_does_not_save_enough():
    assert changes_that_fit(settings_of(*SMALL), 8, needed=10**12, limit=10**9) == []


def test_settings_that_do_not_divide_have_no_estimate():
    assert changes_that_fit(settings_of('MeshConfig.data=7'), 8, needed=2, limit=1) == []
