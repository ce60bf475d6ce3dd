"""tasks/chat.py: files of conversations become tasks that are read from the disk row by row."""

import json

import numpy as np
import pytest
import seqio

from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.config import DataConfig
from t5flan.data.preprocessing.examples import Context
from t5flan.data.prompting.conversations import converse
from t5flan.data.skipped import left_out_lines, skipped_tasks, summary
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from t5flan.tasks import chat
from tests.vocabulary import vocabulary_chosen

VOCABULARY = ByteVocabulary()


def rows(count, first=0):
    return [{'instruction': f'say {i} ü', 'input': '', 'output': f'{i}'} for i in range(first, first + count)]


def write(path, values):
    lines = (json.dumps(value, ensure_ascii=False) + '\n' for value in values)
    path.write_text(json.dumps(values, ensure_ascii=False) if path.suffix == '.json' else ''.join(lines), 'utf-8')
    return str(path)


def config(mixture, **more):
    return DataConfig(mixture, 4, {'inputs': 128, 'targets': 96}, 'bytes', **more)


def test_files_become_tasks_and_a_mixture_by_their_examples(tmp_path):
    files = [write(tmp_path / 'chat test-a.json', rows(40)), write(tmp_path / 'chat_b.jsonl', rows(80, 100))]
    chat.register(files)
    chat.register(files)
    names = ['chat_chat_test_a', 'chat_chat_b']
    sizes = [len(seqio.TaskRegistry.get(name).source.records('train')) for name in names]
    assert 30 <= sizes[0] <= 39 and 65 <= sizes[1] <= 79, 'some are held out'
    with TrainPipeline(config('chat'), VOCABULARY) as pipeline:
        assert pipeline.rates == {name: pytest.approx(size / sum(sizes)) for name, size in zip(names, sizes)}
        batch, _ = next(pipeline)
    text = VOCABULARY.decode(batch['encoder_input_tokens'][0])
    assert text.startswith('User: say ') and batch['decoder_loss_weights'].dtype == np.float32
    texts = [[record['texts'][0] for record in chat.open_file(files[0], split)] for split in ('train', 'validation')]
    assert not set(texts[0]) & set(texts[1])
    assert sorted(sum(texts, [])) == sorted(row['instruction'] for row in rows(40))


def test_seqio_reads_the_task_too(tmp_path):
    chat.register([write(tmp_path / 'chat_seqio.json', rows(5))])
    with vocabulary_chosen(VOCABULARY):
        task = seqio.get_mixture_or_task('chat_chat_seqio')
        dataset = task.get_dataset({'inputs': 64, 'targets': 64}, 'train', shuffle=False)
        example = next(dataset.as_numpy_iterator())
    assert len(example['targets']) == len(example['targets_loss_weights'])


@pytest.mark.parametrize(
    'name,content,pattern',
    [
        (
            'a.json',
            [{'conversations': [{'from': 'human', 'value': 'a'}, {'from': 'human', 'value': 'b'}]}],
            r'a\.json row 1 turn 2: two turns of user in a row.* --skip_broken',
        ),
        (
            'b.jsonl',
            [{'instruction': 'x', 'output': 'y'}, {'instruction': 'x'}],
            r"b\.jsonl line 2: has no field 'output'",
        ),
        ('c.json', [], r'c\.json: no conversations'),
        ('d.json', '[{"a"', r'd\.json a key|d\.json row 1: not JSON'),
        (
            'e.json',
            [{'instruction': 'x', 'output': 'y'}],
            "e.json: one conversation, none is left for split 'validation'",
        ),
    ],
)
def test_one_line_for_a_bad_file(tmp_path, name, content, pattern):
    path = tmp_path / name
    path.write_text(content) if isinstance(content, str) else write(path, content)
    with pytest.raises(UserError, match=pattern) as error:
        chat.open_file(str(path), 'validation')
    assert '\n' not in str(error.value)


def test_one_line_for_a_taken_name_and_for_a_bad_path(tmp_path):
    (tmp_path / 'other').mkdir()
    a, b = write(tmp_path / 'chat_twice.json', rows(3)), write(tmp_path / 'other' / 'chat_twice.json', rows(3))
    with pytest.raises(UserError, match='chat_twice.json: task chat_chat_twice is made of .* already. Rename'):
        chat.register([a, b])
    with pytest.raises(UserError, match='no such file. Set DataConfig.chat'):
        chat.register([str(tmp_path / 'none.json')])
    with pytest.raises(UserError, match='a.csv is empty'):
        chat.register([write(tmp_path / 'a.csv', [])])


def test_skip_broken_skips_rows_that_are_not_conversations(tmp_path, monkeypatch):
    monkeypatch.setattr('t5flan.data.records.file_index.SMALLEST', 0)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    path = write(tmp_path / 'chat_broken.json', [*rows(6), {'text': 'x'}, *rows(6, 6)])
    for _ in range(2):  # scanned, then from the stored index
        records = [chat.open_file(path, split, skip_broken=True) for split in ('train', 'validation')]
        assert sum(map(len, records)) == 12 and f'{path} row 7' in skipped_tasks()
    assert len(list((tmp_path / 't5flan').glob('chat-4-1-*.npz'))) == 1
    write(tmp_path / 'chat_broken.json', rows(4))
    sizes = [len(chat.open_file(path, split, True)) for split in ('train', 'validation')]
    assert sum(sizes) == 4, 'a changed file is scanned again'


def test_what_was_skipped_and_left_out_is_listed(tmp_path):
    good = {'conversations': [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]}
    begins = {'conversations': [{'from': 'gpt', 'value': 'Hi!'}, *good['conversations']]}
    lines = [json.dumps(row) for row in (good, begins, {'text': 'x'}, begins, *rows(9))]
    path = tmp_path / 'chat_listed.jsonl'
    path.write_text('\n'.join([*lines, 'not json', '[1]', *lines[:1]]) + '\n')
    with pytest.raises(UserError, match=r'listed.jsonl line 3: has the fields text.* Set --skip_broken to continue'):
        chat.open_file(str(path), 'train')
    found = [chat.open_file(str(path), split, skip_broken=True) for split in ('train', 'validation')]
    assert sum(map(len, found)) == 13 and {len(record['roles']) for part in found for record in part} == {2}
    reasons = {place: why for place, why in skipped_tasks().items() if place.startswith(str(path))}
    assert [place.removeprefix(f'{path} ') for place in reasons] == ['line 3', 'line 14', 'line 15']
    assert summary(reasons)[:2] == ['3 rows skipped (skip_broken):', f'  {path} line 3: {reasons[f"{path} line 3"]}']
    expected = f"{path}: left out the assistant's turns before the first of the user (2; the first: line 2)"
    assert expected in left_out_lines()


@pytest.mark.parametrize(
    'content,kept,place',
    [
        (json.dumps(rows(5))[:-1] + ', {"instruction": "x"', 5, 'from there on'),
        (json.dumps({str(i): row for i, row in enumerate(rows(4))} | {'bad': {'text': 'x'}}), 4, "'bad'"),
    ],
)
def test_skip_broken_keeps_what_can_be_read(tmp_path, content, kept, place):
    path = tmp_path / f'chat_kept_{kept}.json'
    path.write_text(content)
    with pytest.raises(UserError, match=f'chat_kept_{kept}.json'):
        chat.open_file(str(path), 'train')
    found = [chat.open_file(str(path), split, skip_broken=True) for split in ('train', 'validation')]
    assert sum(map(len, found)) == kept and f'{path} {place}' in skipped_tasks()


@pytest.mark.parametrize(
    'content,message',
    [
        (
            [{'text': 'x'}, {'text': 'y'}],
            'no conversations can be used; the first problem: .* row 1: has the fields text',
        ),
        (
            [{'prompt': {'role': 'prompter', 'text': 'q', 'deleted': True}}],
            'no conversations but trees whose prompt was deleted or failed review. Set DataConfig.chat',
        ),
    ],
)
def test_a_file_with_nothing_left_is_skipped_as_a_whole(tmp_path, content, message):
    path = write(tmp_path / 'chat_nothing.json', content)
    with pytest.raises(UserError, match=message) as error:
        chat.open_file(path, 'train', skip_broken=True)
    assert '\n' not in str(error.value)


def test_real_files(shared):
    folder = shared / 'data' / 'instructions'
    if not folder.is_dir():
        pytest.skip(f'no data at {folder}')
    counts = {
        name: [len(chat.open_file(str(folder / name), split)) for split in ('train', 'validation')]
        for name in ('glaive_toolcall_en_demo.json', 'en_100_tree.jsonl', 'alpaca_en_demo.json', 'seed_tasks.jsonl')
    }
    assert {name: sum(both) for name, both in counts.items()} == {
        'glaive_toolcall_en_demo.json': 300,
        'en_100_tree.jsonl': 123,
        'alpaca_en_demo.json': 999,
        'seed_tasks.jsonl': 175,
    }


@pytest.mark.parametrize(
    'name,unknown',
    [('glaive_toolcall_en_demo.json', 0.024), ('en_100_tree.jsonl', 0.005), ('alpaca_en_demo.json', 0.004)],
)
def test_loss_of_real_conversations_is_on_replies_only(shared, name, unknown):
    folder = shared / 'data' / 'instructions'
    model = shared / 'data' / 'vocab' / 't5_cc_all_32000' / 'sentencepiece.model'
    if not folder.is_dir() or not model.is_file():
        pytest.skip(f'no data at {folder}')
    vocabulary = load_vocabulary(str(model))
    tokens = lost = 0
    for record in chat.open_file(str(folder / name), 'train'):
        example = converse.apply(record, Context(vocabulary, {}))
        replies = [
            ('Call: ' if role == 'call' else '') + text
            for role, text in zip(record['roles'], record['texts'])
            if role in ('assistant', 'call')
        ]
        expected = [[*ids, vocabulary.eos_id] for ids in vocabulary.encode_batch(replies)]
        weights = example['targets_loss_weights'] > 0
        found = example['targets'][weights].tolist()
        assert found == sum(expected, []), 'every token of every reply and its end, and no other'
        tokens += len(example['inputs']) + len(example['targets'])
        lost += example['unknown_tokens']
    assert lost / tokens == pytest.approx(unknown, abs=0.002), "T5's vocabulary lacks braces and backquotes"
