"""t5flan/data/vocabulary/training.py: vocabularies from texts and files, the same on every machine."""

import json
import random

import pytest

from t5flan.data.vocabulary import training as vocabulary_training
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.training import train_sentencepiece, train_vocabulary
from t5flan.errors import UserError

SYLLABLES = ['ap', 'ples', 'pe', 'ars', 'plu', 'ms', 'fi', 'gs', 'da', 'tes', 'num', 'ber', 'of', 'is', 'all']
LINES = [
    ' '.join(''.join(random.Random(3 * i + k).choices(SYLLABLES, k=3)) for k in range(9)) + f' apples {i}'
    for i in range(400)
]


def test_a_trained_vocabulary(trained, texts):
    assert trained.vocab_size == 500
    assert trained.sentinel_id(0) == 500 - 3 - 1
    assert trained.mode_token_id('[NLU]') == 497
    pieces = [trained.piece(i) for i in trained.encode('fox 1984\n')]
    assert pieces[-5:] == ['1', '9', '8', '4', '\n'], 'digits are single pieces, the newline is one'
    assert trained == train_sentencepiece(texts, 500), 'the same text gives the same vocabulary'
    assert trained != train_sentencepiece(texts, 500, mode_tokens=())


def test_sizes_that_do_not_suit_the_text(texts):
    with pytest.raises(UserError, match='more than this text can fill: (\\d+) at most') as error:
        train_sentencepiece(texts, 30_000)
    most = int(str(error.value).split(' at most')[0].split()[-1])
    assert train_sentencepiece(texts, most).vocab_size == most
    with pytest.raises(UserError, match='too small for this text') as error:
        train_sentencepiece(texts, 200)
    least = int(str(error.value).split(' at least')[0].split()[-1])
    assert train_sentencepiece(texts, least).vocab_size == least
    with pytest.raises(UserError, match='text is empty'):
        train_sentencepiece(['', '\n'], 500)


@pytest.mark.parametrize('text', ['a', 'hello world', 'the cat sat on the mat\n' * 3, '\u6f22\u5b57'])
def test_of_a_short_text_the_errors_name_the_sizes_that_do(text):
    bounds = []
    for size, words in ((104, 'at least'), (300, 'at least'), (5000, 'at most')):
        with pytest.raises(UserError, match=words) as error:
            train_sentencepiece([text], size)
        bounds.append(int(str(error.value).split(f' {words}')[0].split()[-1]))
    least, _, most = bounds
    assert bounds[0] == bounds[1] <= most
    for size in (least, most):
        assert train_sentencepiece([text], size).vocab_size == size
    for size in (least - 1, most + 1):
        with pytest.raises(UserError):
            train_sentencepiece([text], size)


def test_text_and_json_files(tmp_path):
    (tmp_path / 'a.txt').write_text('\n'.join(LINES[:200]), 'utf-8')
    rows = [{'inputs': line, 'targets': 'yes', 'id': 3} for line in LINES[200:]]
    (tmp_path / 'b.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    made = train_vocabulary([str(tmp_path / '*.txt'), str(tmp_path / 'b.jsonl')], 420, tmp_path / 'out' / 'v.model')
    assert made.vocab_size == 420
    assert load_vocabulary(tmp_path / 'out' / 'v.model') == made
    assert made.decode(made.encode('apples\n77')) == 'apples\n77'


def test_large_texts_are_sampled_the_same_way_each_time(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    path.write_text('\n'.join(LINES), 'utf-8')
    lines = list(vocabulary_training._lines([str(path)], (), 0.5))
    assert 100 < len(lines) < 300 and lines == list(vocabulary_training._lines([str(path)], (), 0.5))
    monkeypatch.setattr(vocabulary_training, 'MOST_BYTES', path.stat().st_size // 2)
    whole = len(list(vocabulary_training._lines([str(path)], (), 1.0)))
    assert whole == len(LINES)
    assert train_vocabulary([str(path)], 400, tmp_path / 'v.model').vocab_size == 400


def test_one_line_for_bad_input(tmp_path):
    def fails(pattern, *arguments, **options):
        with pytest.raises(UserError, match=pattern) as error:
            train_vocabulary(*arguments, **options)
        assert '\n' not in str(error.value)

    (tmp_path / 'a.jsonl').write_text('{"body": "words"}\n')
    (tmp_path / 'b.jsonl').write_text('{"text": "words"}\nwords\n')
    (tmp_path / 'c.txt').write_bytes(b'good\n\xff\xfe\n')
    out = tmp_path / 'v.model'
    fails(
        r'a\.jsonl line 1: no text in text, inputs, targets; the fields are body. Set --fields',
        [str(tmp_path / 'a.jsonl')],
        400,
        out,
    )
    fails(r'b\.jsonl line 2: not JSON', [str(tmp_path / 'b.jsonl')], 400, out)
    fails(r'c\.txt line 2: not UTF-8', [str(tmp_path / 'c.txt')], 400, out)
    fails('matches no file', [str(tmp_path / '*.md')], 400, out)
    fails('--output=v.txt must end in .model', [str(tmp_path / 'c.txt')], 400, 'v.txt')
    fails('--size=50 leaves no pieces', [str(tmp_path / 'c.txt')], 50, out)
    assert not out.exists()
