"""Continuations end before the first stop string of their text, as if the whole text were cut."""

import doctest

import numpy as np
import pytest

from t5flan.decoding import stopping
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import generate
from t5flan.decoding.stopping import StopStrings
from t5flan.errors import UserError
from tests.models.small_models import VOCABULARY, small_model

PROMPTS = [[5, 9, 2], [7], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 4], [33, 60]]
LIMIT = 30  # more than three searches for stop strings
EOS = 3


def decode(tokens):
    """Each token is three letters, so that stop strings span tokens and begin inside them."""
    tokens = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
    return ''.join(f'{chr(97 + token // 8)}{chr(97 + token % 8)}.' for token in tokens)


@pytest.fixture(scope='module')
def model():
    return small_model('t5_1_1', num_decoder_layers=1, num_encoder_layers=1)


@pytest.mark.parametrize(
    'decoding', [Decoding(LIMIT), Decoding(LIMIT, temperature=1.0, num_samples=2, seed=1)], ids=['greedy', 'samples']
)
def test_the_text_is_that_of_an_unstopped_row_cut_at_the_first_stop_string(model, decoding):
    free = [one for group in generate(model, PROMPTS, decoding, eos_id=EOS) for one in group]
    whole = decode(free[0].tokens.tolist())
    assert len(whole) > 30
    stop = (whole[13:18], 'never written', whole[28:30])
    groups = generate(model, PROMPTS, decoding.replace(stop=stop), eos_id=EOS, decode=decode)
    stopped = [one for group in groups for one in group]
    for one, other in zip(stopped, free, strict=True):
        text = decode(other.tokens.tolist())
        cut = min([len(text), *(place for part in stop if (place := text.find(part)) >= 0)])
        assert (one.before_stop if one.before_stop is not None else decode(one.tokens.tolist())) == text[:cut]
        assert one.tokens.tolist() == other.tokens[: len(one.tokens)].tolist()
        assert one.ended == (one.before_stop is not None or other.ended)
        if one.before_stop is not None:  # no token more than the stop string needs
            assert not any(part in decode(one.tokens[:-1].tolist()) for part in stop)
    assert stopped[0].before_stop == whole[: min(whole.find(stop[0]), whole.find(stop[2]))]


def test_beams_end_at_a_stop_string_as_at_the_end_of_sequence(model):
    """A stop string that is exactly one token is an end of sequence."""
    decoding = Decoding(7, num_beams=3)
    free = generate(model, PROMPTS, decoding, eos_id=VOCABULARY)
    end = int(np.bincount(np.concatenate([one.tokens[1:-1] for beams in free for one in beams])).argmax())
    expected = generate(model, PROMPTS, decoding, eos_id=end)
    unended = lambda tokens: ''.join(f'<{token}>' for token in tokens)
    stop = decoding.replace(stop=(f'<{end}>',))
    found = generate(model, PROMPTS, stop, eos_id=VOCABULARY, decode=unended)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.tokens.tolist() for one in ours] == [one.tokens.tolist() for one in theirs]
        assert [one.ended for one in ours] == [one.ended for one in theirs]
        np.testing.assert_allclose([one.score for one in ours], [one.score for one in theirs], atol=1e-5)
        assert all(one.before_stop == unended(one.tokens[:-1]) for one in ours if one.ended)
    assert any(one.ended for beams in found for one in beams)


def test_the_shortest_prefix_with_a_stop_string_is_found():
    stops = StopStrings(('cd', 'e'), lambda tokens: ''.join(chr(token) for token in tokens))
    tokens = np.frombuffer(b'abcdcde', np.uint8)
    assert stops.find(tokens) == stops.find(tokens, checked=3) == (4, 'ab')
    assert stops.find(tokens[:3]) is None and stops.find(tokens[3:], 1) == (3, 'd')
    assert doctest.testmod(stopping).failed == 0


def test_stop_strings_need_text(model):
    with pytest.raises(UserError, match="stop=\\('x',\\) needs the text of tokens. Pass decode=vocabulary.decode"):
        generate(model, PROMPTS, Decoding(2, stop=('x',)), eos_id=EOS)
