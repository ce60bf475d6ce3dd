"""t5flan/data/preprocessing/controls.py: the configured share of texts get the control token for their score."""

import json

import numpy as np
import pytest

from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import Control, TextFiles
from t5flan.data.preprocessing.controls import token_of
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import register_all

TOKENS = ('[TOX_LOW]', '[TOX_MID]', '[TOX_HIGH]')
VOCABULARY = ByteVocabulary(100, TOKENS)
ROWS = [{'text': f'Text number {i}, of some length.', 'scores': {'toxicity': i % 10 / 10}} for i in range(400)]


def control(**options):
    return Control(**{'field': 'scores.toxicity', 'tokens': TOKENS, 'thresholds': (0.3, 0.7)} | options)


def examples_of(tmp_path, name, rows=ROWS, vocabulary=VOCABULARY, objective='causal_lm', **options):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    files = TextFiles(name, str(path), validation=str(path), controls=(control(**options),))
    settings = DataConfig(
        f'{name}_{objective}', 8, {'inputs': 128, 'targets': 128}, 'bytes', text_files=(files,), format='causal_lm'
    )
    register_all(settings)
    return eval_examples(settings, vocabulary)


def test_thresholds_separate_the_tokens():
    low, mid, high = TOKENS
    found = [token_of(score, control()) for score in (-1, 0, 0.29, 0.3, 0.69, 0.7, 9)]
    assert found == [low, low, low, mid, mid, high, high]


def test_every_text_may_get_the_token_of_its_score(tmp_path):
    found = examples_of(tmp_path, 'control_all', share=1.0)
    for row, one in zip(ROWS, found, strict=True):
        token = token_of(row['scores']['toxicity'], control())
        assert VOCABULARY.decode(one['targets']) == token + row['text']
        assert one['targets'][0] == VOCABULARY.mode_token_id(token), 'one id, not its letters'


@pytest.mark.parametrize('share', [0.0, 0.05, 0.5])
def test_the_share_of_texts_is_as_configured_and_the_same_each_time(tmp_path, share):
    name = f'control_{int(share * 100)}'
    marked = [one['targets'][0] >= 359 for one in examples_of(tmp_path, name, share=share)]
    assert abs(np.mean(marked) - share) < 4 * (share * (1 - share) / len(ROWS)) ** 0.5 + 1e-9
    assert marked == [one['targets'][0] >= 359 for one in examples_of(tmp_path, name, share=share)]


@pytest.mark.parametrize('objective', ['ul2_r_3_15', 'ul2_x_3_50', 'span_corruption'])
def test_a_span_never_hides_the_token(tmp_path, objective):
    for one in examples_of(tmp_path, f'control_{objective}', objective=objective, share=1.0):
        assert one['inputs'][0] >= 359 and not (one['targets'] >= 359).any()


def test_bad_input_is_one_line(tmp_path):
    line = r"line 2: no number at 'scores.toxicity' \(found None\); the fields are text. Set Control.field"
    with pytest.raises(UserError, match=line):
        examples_of(tmp_path, 'control_lacks', [ROWS[0], {'text': 'a'}])
    line = r"no token '\[TOX_LOW\]', it has none. Set Control.tokens or DataConfig.mode_tokens"
    with pytest.raises(UserError, match=line):
        examples_of(tmp_path, 'control_vocabulary', vocabulary=ByteVocabulary(100), share=1.0)
    with pytest.raises(UserError, match='Control.thresholds'):
        control(thresholds=(0.7, 0.3))
    with pytest.raises(UserError, match='Control.thresholds'):
        control(thresholds=(0.5,))
    with pytest.raises(UserError, match='Control.share=2'):
        control(share=2)
    path = tmp_path / 'a.txt'
    path.write_text('words\n')
    files = (TextFiles('control_txt', str(path), controls=(control(),)),)
    lengths = {'inputs': 9, 'targets': 9}
    settings = DataConfig('control_txt_causal_lm', 8, lengths, 'bytes', format='causal_lm', text_files=files)
    register_all(settings)
    with pytest.raises(UserError, match='has no scores.*Set TextFiles.train'):
        eval_examples(settings, VOCABULARY)
