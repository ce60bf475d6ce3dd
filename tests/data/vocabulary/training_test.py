"""t5flan/data/vocabulary/training.py: a vocabulary from files."""

import json
import random

import pytest

from t5flan.data.vocabulary import training as vocabulary_training
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.training import train_vocabulary
from t5flan.errors import UserError

SYLLABLES = 'ap ples pe ars plu ms fi gs da tes num ber of is all'.split()
LINES = [
    ' '.join(''.join(random.Random(3 * i + k).choices(SYLLABLES, k=3)) for k in range(9)) + f' apples {i}'
    for i in range(400)
]


def test_text_and_json_files(tmp_path):
    (tmp_path / 'a.txt').write_text('\n'.join(LINES[:200]), 'utf-8')
    (tmp_path / 'b.jsonl').write_text(
        ''.join(json.dumps({'inputs': line, 'targets': 'yes', 'id': 3}) + '\n' for line in LINES[200:])
    )
    made = train_vocabulary([str(tmp_path / '*.txt'), str(tmp_path / 'b.jsonl')], 420, tmp_path / 'out' / 'v.model')
    assert made.vocab_size == 420
    assert load_vocabulary(tmp_path / 'out' / 'v.model') == made
    assert made.decode(made.encode('apples\n77')) == 'apples\n77'


def test_much_text_is_sampled_the_same_way(tmp_path, monkeypatch):
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
    fails(r'a\.jsonl line 1: none of the fields text, inputs, targets', [str(tmp_path / 'a.jsonl')], 400, out)
    fails(r'b\.jsonl line 2: not JSON', [str(tmp_path / 'b.jsonl')], 400, out)
    fails(r'c\.txt line 2: not UTF-8', [str(tmp_path / 'c.txt')], 400, out)
    fails('matches no file', [str(tmp_path / '*.md')], 400, out)
    fails('--output=v.txt must end in .model', [str(tmp_path / 'c.txt')], 400, 'v.txt')
    fails('--size=50 leaves no pieces', [str(tmp_path / 'c.txt')], 50, out)
    assert not out.exists()
