"""Files of prompts and answers resume, are written by one process at a time, and parts are merged in order."""

import json

import pytest

from t5flan.errors import UsageError, UserError
from t5flan.evaluation.row_files import (
    Part,
    Prompt,
    RowWriter,
    check_record,
    merge,
    named_part,
    read_part,
    read_prompts,
    record_path,
)

ROWS = 7


def test_prompts_of_several_files_and_of_nested_fields(tmp_path):
    (tmp_path / '1.json').write_text('{"x": {"q": {"text": "one"}}, "y": {"q": {"text": "two"}}}')
    (tmp_path / '2.csv').write_bytes(b'\xef\xbb\xbfq.text,targets\r\nthree,no\r\n')
    found = read_prompts(str(tmp_path / '[12].*'), 'q.text')
    assert [(prompt.number, prompt.text) for prompt in found] == [(0, 'one'), (1, 'two'), (3, 'three')]
    (tmp_path / 'p.txt').write_bytes(b'\xef\xbb\xbfone\r\ntwo')
    assert [prompt.text for prompt in read_prompts(str(tmp_path / 'p.txt'), 'inputs')] == ['one', 'two']


def test_text_lines_are_rows(tmp_path):
    path = tmp_path / 'p.txt'
    path.write_bytes('one\r\n\ntwo\u2028still two\n'.encode())
    assert [prompt.row for prompt in read_prompts(str(path), 'inputs')] == [
        {'inputs': 'one', 'index': 0},
        {'inputs': 'two\u2028still two', 'index': 2},
    ]
    assert Part().path(path) == path and Part(1, 4).path(path).name == 'p-00001-of-00004.txt'


@pytest.mark.parametrize(
    'line', ['{"index": 0, "inputs": "another", "prediction": "x"}', '{"index": 9, "inputs": "ab"}', 'x']
)
def test_the_output_of_another_input_is_not_overwritten(tmp_path, line):
    output = tmp_path / 'o.jsonl'
    output.write_text(line + '\n')
    with pytest.raises(UserError, match='o.jsonl:1 does not answer a row'):
        RowWriter(output, [Prompt(0, 'ab', {'inputs': 'ab', 'index': 0})])
    assert output.read_text() == line + '\n'


def write_parts(output, count, rows=ROWS, **changed):
    """Complete parts of `rows` rows, and their records."""
    for number in range(count):
        part = Part(number, count)
        path = part.path(output)
        path.write_text(
            ''.join(json.dumps({'index': row, 'prediction': 'x'}) + '\n' for row in range(number, rows, count))
        )
        check_record(
            path, {'part': [number, count], 'rows': rows, 'input': 'abc', 'step': 3, **changed.get(f'p{number}', {})}
        )


@pytest.mark.parametrize('count', [2, 3, 7, 9])
def test_parts_are_merged_in_the_order_of_the_input(tmp_path, count):
    output = tmp_path / 'o [1].jsonl'
    write_parts(output, count)
    assert merge(output, tmp_path / 'all.jsonl') == ROWS
    assert [json.loads(line)['index'] for line in (tmp_path / 'all.jsonl').open()] == list(range(ROWS))
    assert merge(output, tmp_path / 'all.jsonl') == ROWS  # the same again
    (tmp_path / 'all.jsonl').write_text('{"mine": 1}\n')
    with pytest.raises(UserError, match='all.jsonl exists and has other rows. Remove it, or set another --output'):
        merge(output, tmp_path / 'all.jsonl')
    assert (tmp_path / 'all.jsonl').read_text() == '{"mine": 1}\n'


def spoil(tmp_path, how):
    """Parts of which one is wrong."""
    output = tmp_path / 'o.jsonl'
    changed = {'input': {'p1': {'input': 'another'}}, 'step': {'p2': {'step': 6}}}.get(how, {})
    if how != 'none':
        write_parts(output, 3, **changed)
    second = Part(1, 3).path(output)
    if how == 'killed':
        second.write_bytes(second.read_bytes()[:-4])
    elif how == 'missing':
        second.unlink()
    elif how == 'counts':
        Part(0, 4).path(output).write_text('')
    elif how == 'record':
        record_path(second).unlink()
    elif how == 'renamed':
        for path in (second, record_path(second)):
            path.rename(str(path).replace('00001-of', '00002-of'))
    return output


@pytest.mark.parametrize(
    'how, words',
    [
        ('none', 'o.jsonl has no parts, such as .*o-00000-of-00002.jsonl. Set --merge'),
        ('killed', '1 of 7 rows of .*o.jsonl are missing: 4. Run the jobs of part 1 of 3 again'),
        ('missing', '2 of 7 rows of .*o.jsonl are missing: 1, 4. Run the jobs of part 1 of 3 again'),
        ('counts', 'o.jsonl has parts of 3 and of 4 jobs'),
        ('input', 'do not belong together: input=abc and input=another. Run the jobs with one input'),
        ('step', 'do not belong together: step=3 and step=6'),
        ('record', 'o-00001-of-00003.jsonl has no o-00001-of-00003.run.json beside it'),
        ('renamed', r'is part \[1, 3\], not the one it is named'),
    ],
)
def test_parts_that_cannot_be_merged_are_reported_in_one_line(tmp_path, how, words):
    output = spoil(tmp_path, how)
    with pytest.raises(UserError, match=words) as error:
        merge(output, tmp_path / 'all.jsonl')
    assert '\n' not in str(error.value) and not (tmp_path / 'all.jsonl').exists()


def test_one_process_at_a_time_writes_a_file(tmp_path):
    output, prompts = tmp_path / 'o.jsonl', [Prompt(0, 'a', {'inputs': 'a', 'index': 0})]
    with RowWriter(output, prompts) as writer:
        writer.write(['x'])
        with pytest.raises(
            UserError, match=r'o.jsonl is being written by process \d+ on .* since 2.* set another --output'
        ):
            RowWriter(output, prompts)
    assert RowWriter(output, prompts).done == {0: 'x'}


def test_what_a_killed_run_left_of_its_files_is_removed(tmp_path):
    answers = tmp_path / 'out.jsonl'
    for path in (answers, record_path(answers)):
        (tmp_path / f'.{path.name}.0123abcd.tmp').write_text('half')
    other = tmp_path / '.other.json.0123abcd.tmp'
    other.write_text('of another run')
    with RowWriter(answers, [Prompt(0, 'a', {'inputs': 'a'})], record={'checkpoint': 'run'}) as writer:
        writer.write(['b'])
    assert sorted(tmp_path.iterdir()) == sorted([other, answers, record_path(answers)])


def test_the_name_of_an_output_and_of_a_part(tmp_path):
    output = tmp_path / 'o.jsonl'
    own = Part(1, 4).path(output)
    assert named_part(output, Part(1, 4)) == named_part(own, Part(1, 4)) == (output, Part(1, 4))
    assert named_part(own, Part()) == (own, Part())
    with pytest.raises(
        UsageError, match=f'o-00001-of-00004.jsonl is the file of part 1 of 4, .* Set --output={output}'
    ):
        named_part(own, Part(2, 4))
    assert read_part('3/4') == Part(3, 4)


@pytest.mark.parametrize('jobs, processes', [(1, 1), (4, 1), (1, 3), (3, 2)])
def test_every_row_is_in_exactly_one_part(jobs, processes):
    parts = [Part(job, jobs).within(process, processes) for job in range(jobs) for process in range(processes)]
    rows = [list(range(part.number, 11, part.count)) for part in parts]
    assert sorted(row for own in rows for row in own) == list(range(11))
    assert all(row % jobs == i // processes for i, own in enumerate(rows) for row in own)
    assert [part.size(11) for part in parts] == [len(own) for own in rows]


def test_several_answers_are_a_list_beside_the_first(tmp_path):
    prompts = [Prompt(0, 'a', {'inputs': 'a', 'predictions': 'mine'})]
    answer = [{'text': 'x', 'score': -1.0}, {'text': 'y', 'score': -2.0}]
    with RowWriter(tmp_path / 'o.jsonl', prompts, several=True) as writer:
        writer.write([answer])
    row = json.loads((tmp_path / 'o.jsonl').read_text())
    assert row == {'inputs': 'a', 'predictions': 'mine', 'prediction': 'x', 't5flan_predictions': answer}
    assert RowWriter(tmp_path / 'o.jsonl', prompts, several=True).done == {0: answer}
    with pytest.raises(UserError, match='does not answer a row'):
        RowWriter(tmp_path / 'o.jsonl', prompts)
