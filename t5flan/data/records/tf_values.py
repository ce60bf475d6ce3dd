"""Plain Python values <-> tf.data: records as a tf.data.Dataset, and its elements as plain values."""

from typing import Any

import numpy as np
import tensorflow as tf

from t5flan.data.records.file_rows import Records

_DTYPES = (((bool, np.bool_), tf.bool), ((int, np.integer), tf.int64), ((float, np.floating), tf.float32))


def tensor_spec(value: Any) -> tf.TensorSpec:
    """The TensorSpec of a plain value: str, bytes, bool, int, float, an array, or a list of these."""
    if isinstance(value, np.ndarray) and value.dtype.kind in 'iufb':
        return tf.TensorSpec([None] * value.ndim, value.dtype)
    if isinstance(value, (list, tuple, np.ndarray)):
        inner = tensor_spec(value[0]) if len(value) else tf.TensorSpec([], tf.string)
        return tf.TensorSpec([None, *inner.shape], inner.dtype)
    return tf.TensorSpec([], next((dtype for kinds, dtype in _DTYPES if isinstance(value, kinds)), tf.string))


def plain_value(value: Any) -> Any:
    """A numpy value of tf.data as the plain value that a record holds: bytes become str, ragged tensors lists."""
    if isinstance(value, dict):
        return {name: plain_value(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if hasattr(value, 'to_list'):
        return plain_value(value.to_list())
    if isinstance(value, bytes):
        return value.decode('utf-8')
    if isinstance(value, np.ndarray) and value.dtype.kind in 'OS':
        return [plain_value(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def dataset_of_records(records: Records, numbers: range | None = None) -> tf.data.Dataset:
    """Records (dicts of plain values) as a tf.data.Dataset in their order: all, or those with the given numbers."""
    signature = {name: tensor_spec(value) for name, value in records[0].items()}
    chosen = range(len(records)) if numbers is None else numbers
    return tf.data.Dataset.from_generator(lambda: (records[i] for i in chosen), output_signature=signature)
