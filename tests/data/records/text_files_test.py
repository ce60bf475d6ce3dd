"""t5flan/data/records/text_files.py: no text is lost, documents are held out whole, one clear line for a bad file."""

import json
import random

import pytest

from t5flan.data.corpus_config import Control, TextFiles
from t5flan.data.records.fields import require_field
from t5flan.data.records.text_files import chunk_text, is_held_out, open_text, require_score
from t5flan.errors import UserError


def book(seed=0, paragraphs=40):
    rng = random.Random(seed)
    words = ['one', 'two', 'three', 'naïve', '안녕', '日本', 'five', 'six']
    return '\n\n'.join(' '.join(rng.choices(words, k=rng.randint(1, 60))) for _ in range(paragraphs)) + '\n'


def texts(files, split):
    records = open_text(files, split)
    return [records[i]['text'] for i in range(len(records))]


@pytest.mark.parametrize('most', [1, 5, 40, 200, 10_000])
def test_chunks_join_to_the_text(most):
    for text in (book(), 'x' * 500, '', ' ', 'a b'):
        chunks = chunk_text(text, most)
        assert ''.join(chunks) == text and all(0 < len(chunk) <= most for chunk in chunks)


def test_chunks_are_cut_at_whitespace():
    chunks = chunk_text(book(), 100)
    assert sum(chunk[-1].isspace() for chunk in chunks) == len(chunks)


def test_documents_of_a_book_lose_no_text(tmp_path):
    (tmp_path / 'a.txt').write_text(book(1), 'utf-8')
    (tmp_path / 'b.txt').write_text(book(2), 'utf-8')
    files = TextFiles(name='n', train=str(tmp_path / '*.txt'), max_chars=300, held_out=0.2)
    train, validation = texts(files, 'train'), texts(files, 'validation')
    assert validation and sorted(train + validation) == sorted(chunk_text(book(1), 300) + chunk_text(book(2), 300))


def test_lines_and_paragraphs(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes('first line\nsecond\u2028still second\n\n \nthird paragraph\n'.encode())
    files = lambda unit: TextFiles('n', str(path), unit=unit)
    both = lambda unit: sorted(text for split in ('train', 'validation') for text in texts(files(unit), split))
    assert both('line') == ['first line', 'second\u2028still second', 'third paragraph']
    assert both('paragraph') == ['first line\nsecond\u2028still second', 'third paragraph']


def test_json_lines_end_at_newlines_only(tmp_path):
    path = tmp_path / 'a.jsonl'
    documents = ['one\u2028two', 'x ' * 40, 'last']
    path.write_text('\n'.join(json.dumps({'body': text}, ensure_ascii=False) for text in documents) + '\n\n', 'utf-8')
    files = TextFiles('n', str(path), field='body', max_chars=30, validation=str(path))
    assert ''.join(texts(files, 'train')) == ''.join(documents) and texts(files, 'validation') == texts(files, 'train')


def test_documents_are_held_out_whole(tmp_path):
    path = tmp_path / 'a.jsonl'
    documents = [f'{i} ' + 'word ' * 30 for i in range(200)]
    path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in documents))
    files = TextFiles('n', str(path), max_chars=50, held_out=0.1)
    validation = ''.join(texts(files, 'validation'))
    held = [text for text in documents if is_held_out(text, 0.1)]
    assert validation == ''.join(held) and 8 < len(held) < 35


@pytest.mark.parametrize(
    'content,name,options,pattern',
    [
        (b'', 'a.txt', {}, r'a\.txt is empty'),
        (b'a\xff\xfe', 'a.txt', {}, r'a\.txt: byte 1 is not UTF-8'),
        (b' \n\n', 'a.txt', {}, "no text for split 'train'"),
        (b'words', 'a.md', {}, r"a\.md: ends in '\.md', expected \.txt, \.jsonl"),
        (b'{"text": "a"}\nwords\n', 'a.jsonl', {}, r'a\.jsonl line 2: not JSON'),
        (b'{"text": "a"}\n[1]\n', 'a.jsonl', {}, r'a\.jsonl line 2: is list, not a JSON object'),
        (b'{"body": "a"}\n', 'a.jsonl', {}, r"a\.jsonl line 1: no field 'text'; the fields are body"),
        (b'{"text": 3}\n', 'a.jsonl', {}, r"a\.jsonl line 1: field 'text' is int \(3\)"),
        (b'{"text": "\xff"}\n', 'a.jsonl', {}, r'a\.jsonl line 1: not JSON \(not UTF-8\)'),
        (None, 'a.txt', {}, r'a\.txt: no such file'),
        (None, '*.txt', {}, r"\*\.txt' matches no file"),
        (None, '', {}, 'is a folder'),
        (b'one', 'a.txt', {'split': 'validation'}, "no text for split 'validation'"),
    ],
)
def test_one_line_for_a_bad_file(tmp_path, content, name, options, pattern):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=pattern) as error:
        open_text(TextFiles('n', str(tmp_path / name)), options.get('split', 'train'))
    assert '\n' not in str(error.value)


def test_a_missing_field_is_answered_with_the_existing_ones():
    line = "f.jsonl line 3: no field 'inputs'; the fields are question, answer. Set FileTask.input_field"
    with pytest.raises(UserError, match=line):
        require_field({'question': 'a', 'answer': 'b'}, 'inputs', 'f.jsonl line 3', 'FileTask.input_field')
    with pytest.raises(UserError, match=r"field 'answer' is int \(42\), it must be text"):
        require_field({'answer': 42}, 'answer', 'f.jsonl line 3', 'FileTask.target_field')


@pytest.mark.parametrize('score', ['0.5', None, True, float('nan'), float('inf'), [0.5], {}])
def test_a_score_is_a_number(score):
    with pytest.raises(UserError, match=r"a line 3: no number at 'toxicity'.*Set Control.field"):
        require_score({'toxicity': score}, 'toxicity', 'a line 3')
    with pytest.raises(UserError, match='the fields are text'):
        require_score({'text': 'x'}, 'toxicity', 'a line 3')
    assert require_score({'prompt': {'toxicity': 1}}, 'prompt.toxicity', 'a line 3') == 1.0


@pytest.mark.parametrize('thresholds', [(0.7, 0.3), (0.5, 0.5), (0.3, 'x'), (0.3, float('nan')), (0.3,), (True, 2)])
def test_thresholds_that_overlap_are_refused(thresholds):
    with pytest.raises(UserError, match='Control.thresholds'):
        Control('toxicity', ('[LOW]', '[MID]', '[HIGH]'), thresholds)
