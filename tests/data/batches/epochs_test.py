"""t5flan/data/batches/epochs.py: the steps of an epoch are those after which every record was seen."""

import json
import math

import pytest

from t5flan.data.batches import epochs as epochs_lib
from t5flan.data.batches.epochs import steps_of_epochs
from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.tasks import register_all

VOCABULARY = ByteVocabulary()


def config(tmp_path, name, count, **options):
    path = tmp_path / 'rows.jsonl'
    rows = [{'inputs': 'a' * (1 + i % 17), 'targets': f'{i}'} for i in range(count)]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    task = FileTask(name=name, train=str(path), validation=str(path))
    data = DataConfig(name, 4, {'inputs': 40, 'targets': 16}, 'bytes', prefetch=0, file_tasks=(task,), **options)
    register_all(data)
    return data


@pytest.mark.parametrize('epochs', [1, 2.5])
def test_without_packing_the_number_is_that_of_the_rows(tmp_path, epochs):
    data = config(tmp_path, f'epochs_plain_{int(epochs)}', 30, pack=False)
    steps, line = steps_of_epochs(epochs, data, VOCABULARY, TrainPipeline(data, VOCABULARY).plan)
    assert steps == math.ceil(epochs * 30 / 4)
    assert line == f'{epochs:g} epoch{"s" * (epochs != 1)} of 30 records: {steps} steps'


def test_with_packing_every_record_is_seen(tmp_path):
    data = config(tmp_path, 'epochs_packed', 300)
    steps, line = steps_of_epochs(1, data, VOCABULARY, TrainPipeline(data, VOCABULARY).plan)
    pipeline, seen = TrainPipeline(data, VOCABULARY), []
    for _ in range(steps):
        next(pipeline)
        seen.append(pipeline.report()['tasks']['epochs_packed']['examples'])
    assert seen[-1] >= 300 > seen[-2] and 'about' not in line


def test_large_data_is_extrapolated(tmp_path, monkeypatch):
    data = config(tmp_path, 'epochs_large', 3000)
    plan = TrainPipeline(data, VOCABULARY).plan
    exact, _ = steps_of_epochs(1, data, VOCABULARY, plan)
    monkeypatch.setattr(epochs_lib, '_MOST_EXAMPLES', 500)
    steps, line = steps_of_epochs(1, data, VOCABULARY, plan)
    assert abs(steps - exact) < 0.05 * exact and ': about ' in line
