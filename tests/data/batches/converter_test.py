"""t5flan/data/batches/converter.py: the examples of its docstring, and SeqIO's converters on random examples."""

import numpy as np
import pytest

from t5flan.data.batches.converter import make_batch
from t5flan.data.preprocessing.features import LOSS_WEIGHTS

LENGTHS = {'inputs': 7, 'targets': 6}


def example(inputs, targets):
    return {'inputs': np.array(inputs, np.int32), 'targets': np.array(targets, np.int32)}


def test_packed_encoder_decoder():
    batch = make_batch('encoder_decoder', LENGTHS, [[example([7, 8, 1], [3, 9, 1]), example([5, 1], [4, 1])]], True)
    assert {name: values[0].tolist() for name, values in batch.items()} == {
        'encoder_input_tokens': [7, 8, 1, 5, 1, 0, 0],
        'encoder_segment_ids': [1, 1, 1, 2, 2, 0, 0],
        'encoder_positions': [0, 1, 2, 0, 1, 0, 0],
        'decoder_target_tokens': [3, 9, 1, 4, 1, 0],
        'decoder_input_tokens': [0, 3, 9, 0, 4, 0],
        'decoder_loss_weights': [1, 1, 1, 1, 1, 0],
        'decoder_segment_ids': [1, 1, 1, 2, 2, 0],
        'decoder_positions': [0, 1, 2, 0, 1, 0],
    }
    assert {name: values.dtype for name, values in batch.items() if values.dtype != np.int32} == {
        'decoder_loss_weights': np.float32
    }


def test_unpacked_encoder_decoder_has_no_segments():
    batch = make_batch('encoder_decoder', LENGTHS, [[example([7, 1], [3, 1])], []], False)
    assert set(batch) == {
        'encoder_input_tokens',
        'decoder_target_tokens',
        'decoder_input_tokens',
        'decoder_loss_weights',
    }
    assert batch['decoder_loss_weights'].tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6], 'a row without examples has no loss'


def test_prefix_lm():
    lengths = {'inputs': 3, 'targets': 4}
    batch = make_batch('prefix_lm', lengths, [[example([9, 4, 1], [3, 1])]], True)
    assert {name: values[0].tolist() for name, values in batch.items()} == {
        'decoder_target_tokens': [9, 4, 1, 3, 1, 0, 0],
        'decoder_input_tokens': [0, 9, 4, 1, 3, 0, 0],
        'decoder_loss_weights': [0, 0, 0, 1, 1, 0, 0],
        'decoder_causal_attention': [1, 1, 1, 1, 0, 0, 0],
        'decoder_segment_ids': [1, 1, 1, 1, 1, 0, 0],
        'decoder_positions': [0, 1, 2, 3, 4, 0, 0],
    }


def test_packed_prefix_lm_restarts_in_every_segment():
    batch = make_batch(
        'prefix_lm', {'inputs': 5, 'targets': 4}, [[example([9, 1], [3, 1]), example([8], [6, 1])]], True
    )
    assert batch['decoder_causal_attention'][0].tolist() == [1, 1, 1, 0, 1, 1, 0, 0, 0]
    assert batch['decoder_loss_weights'][0].tolist() == [0, 0, 1, 1, 0, 1, 1, 0, 0]
    assert batch['decoder_input_tokens'][0].tolist() == [0, 9, 1, 3, 0, 8, 6, 0, 0]


def test_causal_lm_with_and_without_inputs():
    rows = [[{'targets': np.array([5, 6, 1], np.int32)}, example([9, 1], [3, 1])]]
    batch = make_batch('causal_lm', LENGTHS, rows, True)
    assert 'decoder_causal_attention' not in batch
    assert batch['decoder_loss_weights'][0, :8].tolist() == [1, 1, 1, 0, 0, 1, 1, 0]


def _seqio_batch(converter, examples, lengths):
    import seqio
    import tensorflow as tf

    names = list(examples[0])
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(examples), output_signature={name: tf.TensorSpec([None], tf.int32) for name in names}
    )
    rows = list(getattr(seqio, converter)(pack=False)(dataset, lengths).as_numpy_iterator())
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    'format,converter', [('encoder_decoder', 'EncDecFeatureConverter'), ('prefix_lm', 'PrefixLMFeatureConverter')]
)
def test_equals_seqio_converters(format, converter):
    rng = np.random.default_rng(0)
    lengths = {'inputs': 9, 'targets': 8}
    draw = lambda most: rng.integers(2, 30, rng.integers(1, most)).tolist() + [1]
    examples = [example(draw(9), draw(8)) for _ in range(20)]
    ours = make_batch(format, lengths, [[one] for one in examples], False)
    theirs = _seqio_batch(converter, examples, lengths)
    assert set(theirs) <= set(ours)
    # SeqIO shifts the end of sequence into the padding, where nothing reads it; ours is 0 there.
    theirs['decoder_input_tokens'] *= theirs['decoder_target_tokens'] > 0
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


def weighted(inputs, targets, weights):
    return example(inputs, targets) | {LOSS_WEIGHTS: np.array(weights, np.float32)}


def test_loss_weights_of_an_example():
    rows = [[weighted([7, 1], [3, 1, 6], [1, 1, 0]), example([5], [4, 1])], [example([8], [9])]]
    encoder_decoder = make_batch('encoder_decoder', LENGTHS, rows, True)
    assert encoder_decoder['decoder_loss_weights'].tolist() == [[1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
    for format in ('prefix_lm', 'causal_lm'):
        weights = make_batch(format, LENGTHS, rows, True)['decoder_loss_weights']
        assert (
            weights[:, :9].tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]]
            and not weights[:, 9:].any()
        )


@pytest.mark.parametrize('format', ['prefix_lm', 'causal_lm'])
def test_without_a_start_token_the_first_token_is_only_read(format):
    """As transformers trains a model whose tokenizer adds no BOS: the same tokens, shifted by one."""
    rng = np.random.default_rng(0)
    example = lambda a, b: {
        name: rng.integers(2, 50, n).astype(np.int32) for name, n in (('inputs', a), ('targets', b))
    }
    row = [example(3, 2), example(1, 4), example(0, 3)]
    row[1]['targets_loss_weights'] = np.array([1, 0, 1, 1], np.float32)
    lengths = {'inputs': 8, 'targets': 8}
    batch = {name: x[0] for name, x in make_batch(format, lengths, [row], True, starts=False).items()}
    start = 0
    for segment, one in enumerate(row, 1):
        tokens, inputs = np.concatenate([one['inputs'], one['targets']]), len(one['inputs'])
        part = slice(start, start + len(tokens) - 1)
        assert batch['decoder_input_tokens'][part].tolist() == tokens[:-1].tolist()
        assert batch['decoder_target_tokens'][part].tolist() == tokens[1:].tolist()
        weights = np.concatenate([np.zeros(inputs), one.get('targets_loss_weights', np.ones(len(one['targets'])))])[1:]
        assert batch['decoder_loss_weights'][part].tolist() == weights.tolist()
        assert set(batch['decoder_segment_ids'][part]) == {segment}
        assert batch['decoder_positions'][part].tolist() == list(range(len(tokens) - 1))
        if format == 'prefix_lm' and inputs > 1:
            assert batch['decoder_causal_attention'][part].tolist() == [1] * inputs + [0] * (len(tokens) - 1 - inputs)
        start += len(tokens) - 1
    assert not batch['decoder_segment_ids'][start:].any() and not batch['decoder_loss_weights'][start:].any()
