"""Rows of a teacher that is a decoder hold each example as one text, and are read where the targets are predicted."""

import jax
import numpy as np
import pytest

from t5flan.training.distillation.rows import joined_rows

EOS = 1


def joined(batch):
    rows, place_BT = jax.jit(joined_rows, static_argnums=1)({k: np.int32(x) for k, x in batch.items()}, EOS)
    return {name.removeprefix('decoder_'): np.asarray(x).tolist() for name, x in rows.items()}, np.asarray(place_BT)


def test_packed_rows_become_the_texts_in_turn():
    rows, place_BT = joined(
        {
            'encoder_input_tokens': [[5, 6, EOS, 7, EOS, 0]],
            'encoder_segment_ids': [[1, 1, 1, 2, 2, 0]],
            'decoder_input_tokens': [[2, 8, 9, 2, 4, 0]],
            'decoder_target_tokens': [[8, 9, EOS, 4, EOS, 0]],
            'decoder_segment_ids': [[1, 1, 1, 2, 2, 0]],
            'decoder_positions': [[0, 1, 2, 0, 1, 0]],
        }
    )
    assert rows['input_tokens'] == [[2, 5, 6, 8, 9, 2, 7, 4, 0, 0, 0, 0]]
    assert rows['segment_ids'] == [[1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0]]
    assert rows['positions'] == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 0, 0]]
    assert place_BT[0, :5].tolist() == [2, 3, 4, 6, 7]


def test_rows_that_are_not_packed_have_no_gap_between_input_and_target():
    rows, place_BT = joined(
        {
            'encoder_input_tokens': [[5, 6, EOS, 0], [EOS, 0, 0, 0], [5, 6, 7, 8]],
            'decoder_input_tokens': [[2, 8, 9], [2, 8, 0], [2, 4, 0]],
            'decoder_target_tokens': [[8, 9, EOS], [8, EOS, 0], [4, EOS, 0]],
        }
    )
    assert rows['input_tokens'] == [[2, 5, 6, 8, 9, 0, 0], [2, 8, 0, 0, 0, 0, 0], [2, 5, 6, 7, 8, 4, 0]]
    assert [row[:count].tolist() for row, count in zip(place_BT, (3, 2, 2))] == [[2, 3, 4], [0, 1], [4, 5]]


@pytest.mark.parametrize('seed', range(4))
def test_random_packed_rows_hold_every_text_once(seed):
    """Compared with joining the texts one by one."""
    rng = np.random.default_rng(seed)
    names = [f'{side}_{name}' for side in ('encoder', 'decoder') for name in ('input_tokens', 'segment_ids')]
    batch = {name: np.zeros((2, 40), np.int32) for name in (*names, 'decoder_target_tokens', 'decoder_positions')}
    expected, places = np.zeros((2, 80), np.int32), np.zeros((2, 40), np.int32)
    for row in range(2):
        at = {'encoder': 0, 'decoder': 0, 'joined': 0}
        for segment in range(1, rng.integers(2, 6)):
            source, target = rng.integers(3, 90, rng.integers(0, 8)), rng.integers(3, 90, rng.integers(1, 8))
            sides = {'encoder': np.append(source, EOS), 'decoder': np.append(2, target[:-1])}
            places[row, at['decoder'] : at['decoder'] + len(target)] = (
                at['joined'] + len(source) + np.arange(len(target))
            )
            text = np.concatenate([[2], source, target[:-1]])
            expected[row, at['joined'] : at['joined'] + len(text)] = text
            batch['decoder_positions'][row, at['decoder'] : at['decoder'] + len(target)] = np.arange(len(target))
            batch['decoder_target_tokens'][row, at['decoder'] : at['decoder'] + len(target)] = target
            for side, tokens in sides.items():
                batch[f'{side}_input_tokens'][row, at[side] : at[side] + len(tokens)] = tokens
                batch[f'{side}_segment_ids'][row, at[side] : at[side] + len(tokens)] = segment
                at[side] += len(tokens)
            at['joined'] += len(text)
    rows, place_BT = joined(batch)
    np.testing.assert_array_equal(rows['input_tokens'], expected)
    seen = batch['decoder_segment_ids'] > 0
    np.testing.assert_array_equal(np.asarray(place_BT)[seen], places[seen])
