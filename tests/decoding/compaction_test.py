"""Batches that shrink while their rows end give the tokens of batches that do not."""

import numpy as np
import pytest

from t5flan.decoding import compaction, sampled, steps
from t5flan.decoding import generate as generate_lib
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import generate
from tests.models.small_models import ENCODER_DECODERS, VOCABULARY, small_model

PROMPTS_BP = np.array([[5 + i, 9, 2 + i % 3] for i in range(8)], np.int32)
LIMIT = 16


@pytest.fixture
def heights(monkeypatch):
    """The number of rows after each compaction. Batches of any size are looked at after each two tokens."""
    monkeypatch.setattr(compaction, 'LEAST_PROMPTS', 1)
    monkeypatch.setattr(compaction, 'LEAST_TOKENS', 1)
    monkeypatch.setattr(compaction, 'CHECK_EVERY', 2)
    monkeypatch.setattr(generate_lib, 'CHECK_EVERY', 2)
    found, keep = [], sampled.keep

    def counted(loop, rows_R, prompts_Q):
        found.append(len(rows_R))
        return keep(loop, rows_R, prompts_Q)

    monkeypatch.setattr(sampled, 'keep', counted)
    return found


def _small(family):
    return small_model(
        family, num_decoder_layers=1, **({'num_encoder_layers': 1} if family in ENCODER_DECODERS else {})
    )


@pytest.mark.parametrize(
    'family, samples, unrolled',
    [
        ('t5_1_1', 2, True),
        ('palm', 1, True),
        pytest.param('t5_1_1', 1, False, marks=pytest.mark.slow),
        pytest.param('palm', 2, False, marks=pytest.mark.slow),
    ],
)
def test_the_rows_that_remain_go_on_as_in_the_whole_batch(family, samples, unrolled, heights, monkeypatch):
    if not unrolled:
        monkeypatch.setattr(steps, 'UNROLLED_LAYERS', 0)
    model = _small(family)
    layers, choice = steps.prepare(model), sampled.Choice(VOCABULARY, VOCABULARY, np.float32(1), 0, np.float32(1))
    options = dict(greedy=samples == 1, capacity=LIMIT, new_slots=LIMIT, num_samples=samples, prefix_lm=False)
    placement = None if unrolled else 'scanned'  # part of the key under which a program is kept
    ended_B = np.repeat(np.arange(8) % 3 > 0, samples)  # prompts 0, 3 and 6 run

    def begun():
        none_B = np.zeros(8, np.int32)
        prompts = steps.PromptBatch(PROMPTS_BP, none_B, np.arange(8, dtype=np.int32), none_B)
        loop = sampled.begin(model, prompts, choice, np.int32(1), **options, placement=placement)
        return sampled.advance(model, layers, loop, choice, np.int32(4), placement=placement)._replace(
            ended_B=ended_B.copy()
        )

    whole = sampled.advance(model, layers, begun(), choice, np.int32(LIMIT), placement=placement)
    batch = compaction.Compaction(begun(), samples, LIMIT)
    loop = batch.shrink(begun(), 4)
    assert heights == [4 * samples] and set(np.repeat([0, 3, 6], samples)) <= set(batch.places_R // samples)
    results = batch.results(sampled.advance(model, layers, loop, choice, np.int32(LIMIT), placement=placement))
    np.testing.assert_array_equal(results.tokens_BT, whole.tokens_BT)
    np.testing.assert_array_equal(results.lengths_B, np.where(ended_B, 4, LIMIT))
    np.testing.assert_allclose(results.log_probs_BT, whole.log_probs_BT, atol=2e-5)


@pytest.mark.parametrize('stops', [False, True])
def test_batches_shrink_at_the_end_of_sequence_and_at_stop_strings(stops, heights):
    model, decoding = _small('t5_1_1'), Decoding(max_new_tokens=LIMIT)
    decode = lambda ids: ''.join(map(chr, ids))
    free = [result.tokens.tolist() for (result,) in generate(model, PROMPTS_BP, decoding, eos_id=VOCABULARY)]
    assert not heights
    end = max(range(1, VOCABULARY), key=lambda i: sum(i in tokens[:6] for tokens in free))
    eos_id, stop = (VOCABULARY, (chr(end),)) if stops else (end, ())
    results = generate(model, PROMPTS_BP, decoding.replace(stop=stop), eos_id=eos_id, decode=decode)
    assert heights
    for tokens, (result,) in zip(free, results, strict=True):
        length = tokens.index(end) + 1 if end in tokens else LIMIT
        assert result.tokens.tolist() == tokens[:length] and result.ended == (end in tokens)


def test_few_prompts_few_tokens_and_accelerators_stay_whole(monkeypatch):
    assert compaction.is_useful(32, 128)
    assert not compaction.is_useful(8, 128)
    assert not compaction.is_useful(32, 64)
    monkeypatch.setattr(compaction.sharding_lib, 'platform', lambda: 'gpu')
    assert not compaction.is_useful(32, 128)
