"""t5flan/data/records/tf_values.py: plain values come back from tf.data as they were."""

import numpy as np
import pytest
import tensorflow as tf

from t5flan.data.records.tf_values import dataset_of_records, plain_value, tensor_spec

RECORDS = [
    {'text': f'né {i}', 'n': i, 'share': i / 2, 'good': i > 1, 'words': ['a', 'ß'][: i % 2 + 1], 'ids': [1, i]}
    for i in range(4)
]


@pytest.mark.parametrize('numbers', [None, range(1, 3)])
def test_records_come_back(numbers):
    found = [plain_value(row) for row in dataset_of_records(RECORDS, numbers).as_numpy_iterator()]
    found = [{**row, 'ids': row['ids'].tolist()} for row in found]
    assert found == [RECORDS[i] for i in numbers or range(4)]


@pytest.mark.parametrize(
    'value,shape,dtype',
    [
        ('a', [], tf.string),
        (b'a', [], tf.string),
        (True, [], tf.bool),
        (np.bool_(True), [], tf.bool),
        (3, [], tf.int64),
        (np.int16(3), [], tf.int64),
        (0.5, [], tf.float32),
        ([], [None], tf.string),
        ([[1], [2]], [None, None], tf.int64),
        (np.zeros((2, 3), np.int32), [None, None], tf.int32),
    ],
)
def test_specs_follow_the_values(value, shape, dtype):
    spec = tensor_spec(value)
    assert spec.shape.as_list() == shape and spec.dtype == dtype


def test_ragged_values_become_lists():
    ragged = tf.ragged.constant([[b'a'], [b'b', b'c']])
    dataset = tf.data.Dataset.from_tensors({'words': ragged})
    assert plain_value(next(dataset.as_numpy_iterator())) == {'words': [['a'], ['b', 'c']]}
