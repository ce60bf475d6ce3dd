"""t5flan/data/mixtures/mixing.py: shares of tasks, rates of nested mixtures, and names."""

import numpy as np
import pytest
import seqio

from t5flan.data.mixtures import mixing
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.seqio_vocabulary import text_features
from t5flan.errors import UserError


@pytest.mark.parametrize('rates', [[1.0], [0.5, 0.5], [0.9, 0.09, 0.01], list(np.arange(1, 41) / 820)])
def test_shares_are_right_to_a_slot(rates):
    schedule = mixing.Schedule(rates, 'key')
    counts = np.zeros(len(rates))
    for number in range(40):
        counts += np.bincount(schedule.block(number), minlength=len(rates))
        expected = np.array(rates) * schedule.BLOCK * (number + 1)
        assert (abs(counts - expected) <= 1.0).all()


@pytest.mark.parametrize('streams', [2, 3, 8])
def test_shares_of_all_streams_are_right_to_a_slot(streams):
    rates = np.arange(1, 61) / 1830
    schedules = [mixing.Schedule(rates, 'key', True, stream, streams) for stream in range(streams)]
    counts = np.zeros(len(rates))
    for number in range(20):
        counts += sum(np.bincount(schedule.block(number), minlength=len(rates)) for schedule in schedules)
        assert (abs(counts - rates * mixing.Schedule.BLOCK * streams * (number + 1)) <= 1 + 1e-6).all()
    assert (schedules[0].block(3)[:100] != schedules[1].block(3)[:100]).any()


def test_a_block_is_a_function_of_its_number():
    one, other = (mixing.Schedule([0.3, 0.7], 'key') for _ in range(2))
    blocks = [one.block(number).tolist() for number in range(5)]
    assert [other.block(number).tolist() for number in (4, 2, 0)] == [blocks[4], blocks[2], blocks[0]]
    assert blocks[0] != mixing.Schedule([0.3, 0.7], 'other').block(0).tolist()
    assert blocks[0] != sorted(blocks[0])


def test_rare_tasks_come_although_most_blocks_lack_them():
    rates = np.full(2000, 1 / 2000)
    schedule, seen, at = mixing.Schedule(rates, 'key'), [], (0, 0)
    for _ in range(4000):
        task, block, slot = schedule.task_at(*at)
        seen.append(task)
        at = (block, slot + 1)
    assert len(set(seen)) > 1900 and max(np.bincount(seen)) <= 4


def _add(name, splits=('train',)):
    records = [{'inputs': 'a', 'targets': 'b'}]
    seqio.TaskRegistry.add(
        name, source=IndexedSource(dict.fromkeys(splits, records)), preprocessors=[], output_features=text_features()
    )


def test_rates_of_nested_mixtures_are_seqios():
    for name in ('mixing_a', 'mixing_b', 'mixing_c'):
        _add(name, ('train', 'validation') if name == 'mixing_a' else ('train',))
    seqio.MixtureRegistry.add('mixing_inner', [('mixing_a', 1), ('mixing_b', 3)])
    seqio.MixtureRegistry.add('mixing_outer', [('mixing_inner', 2), ('mixing_c', lambda task: 2.0)])
    rates = {task.name: rate for task, rate in mixing.tasks_and_rates(mixing.find_mixture('mixing_outer'))}
    assert rates == {'mixing_a': 0.125, 'mixing_b': 0.375, 'mixing_c': 0.5}
    assert [
        (task.name, rate) for task, rate in mixing.tasks_and_rates(mixing.find_mixture('mixing_outer'), 'validation')
    ] == [('mixing_a', 1.0)]
    with pytest.raises(UserError, match="no task has a split 'test'.*the splits are train, validation"):
        mixing.tasks_and_rates(mixing.find_mixture('mixing_outer'), 'test')


def test_an_unknown_name_is_answered_with_the_nearest():
    _add('mixing_translate_german')
    with pytest.raises(
        UserError, match="no task or mixture 'mixing_translate_germn'; the nearest are mixing_translate_german"
    ):
        mixing.find_mixture('mixing_translate_germn')


def test_the_start_of_a_name_and_a_part_of_it_find_it():
    _add('mixing_ni_task139_copa_completion')
    for part in ('mixing_ni_task1', 'task139_copa'):
        with pytest.raises(UserError, match='the nearest are mixing_ni_task139_copa_completion'):
            mixing.find_mixture(part)
