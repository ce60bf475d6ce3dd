"""t5flan/corpora/decontamination.py: what overlaps is removed, nothing else is, and each set has its report."""

import json
import random
from pathlib import Path

import pytest

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.corpora.decontamination import Overlap, decontaminate, evaluation_files
from t5flan.corpora.words import ngrams
from t5flan.errors import UserError

RNG = random.Random(0)
WORDS = [f'word{i}' for i in range(5000)]


def text(words=40):
    return ' '.join(RNG.choices(WORDS, k=words))


def write(path, rows):
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
    return str(path)


def kept(path):
    return list(map(json.loads, Path(path).read_text('utf-8').splitlines()))


def run(tmp_path, train, tests, **options):
    sets = [evaluation_files(write(tmp_path / f'{name}.jsonl', rows)) for name, rows in tests.items()]
    report = decontaminate([write(tmp_path / 'train.jsonl', train)], str(tmp_path / 'o.jsonl'), sets, **options)
    return report, {Path(name).stem: entry for name, entry in report['evaluations'].items()}


def test_examples_with_a_common_ngram_are_removed(tmp_path):
    question = text(30).split()
    inside = lambda count: f'{text(10)} {" ".join(question[3 : 3 + count]).upper()}! {text(10)}'
    train = [{'id': i, 'inputs': one} for i, one in enumerate([text(), inside(13), inside(12), text()])]
    train += [{'id': 4, 'messages': [{'role': 'user', 'content': [{'text': inside(20)}]}]}]
    report, sets = run(tmp_path, train, {'exam': [{'question': ' '.join(question), 'answer': 7}, {'question': text()}]})
    assert [row['id'] for row in kept(tmp_path / 'o.jsonl')] == [0, 2, 3]
    assert (report['examples'], report['kept']) == (5, 3)
    found = sets['exam']
    assert (found['examples'], found['found'], found['share'], found['removed']) == (2, 1, 0.5, 2)
    assert found['matches'][0] == {
        'text': f'{tmp_path}/train.jsonl line 2',
        'of': f'{tmp_path}/exam.jsonl line 1',
        'ngrams': 1,
        'ngram': ' '.join(question[3:16]),
    }
    assert found['matches'][1]['ngrams'] == 8


def test_short_texts_count_whole_from_eight_words_on(tmp_path):
    eight, seven = text(8), text(7)
    train = [{'text': f'{text(9)} {one} {text(9)}'} for one in (eight, seven)]
    report, sets = run(tmp_path, train, {'exam': [{'q': eight}, {'q': seven}]})
    assert kept(tmp_path / 'o.jsonl') == [train[1]]
    assert (sets['exam']['too_short'], sets['exam']['found']) == (1, 1)
    assert run(tmp_path, train, {'exam': [{'q': seven}]}, overlap=Overlap(min_words=7))[0]['kept'] == 1


def test_the_same_as_comparing_all_pairs(tmp_path):
    words = [f'w{i}' for i in range(7)]
    draw = lambda: ' '.join(RNG.choices(words, k=RNG.randint(4, 12)))
    train, exams = [{'a': draw(), 'b': [draw()]} for _ in range(200)], {'x': [], 'y': []}
    for rows in exams.values():
        rows += [{'q': draw()} for _ in range(20)]
    report, sets = run(tmp_path, train, exams, overlap=Overlap(4, 4))
    grams = lambda row: {one for text in (row['a'], row['b'][0]) for one in ngrams(text, 4)}
    overlaps = {
        name: [{i for i, row in enumerate(train) if grams(row) & set(ngrams(exam['q'], 4))} for exam in rows]
        for name, rows in exams.items()
    }
    removed = {name: set().union(*found) for name, found in overlaps.items()}
    assert 20 < len(removed['x'] | removed['y']) < 180
    assert kept(tmp_path / 'o.jsonl') == [row for i, row in enumerate(train) if i not in removed['x'] | removed['y']]
    for name, entry in sets.items():
        assert entry['removed'] == len(removed[name]) and entry['found'] == sum(map(bool, overlaps[name]))


def test_share_and_frequent_ngrams(tmp_path):
    question, frame = text(25), text(20)
    part = ' '.join(question.split()[:14])
    train = [{'text': f'{text(5)} {one}'} for one in (question, part, *[frame] * 4)]
    exam = {'exam': [{'q': question}, {'q': f'{frame} {text(20)}'}]}
    assert run(tmp_path, train, exam)[0]['kept'] == 0
    assert run(tmp_path, train, exam, overlap=Overlap(share=0.7))[0]['kept'] == 5
    report, sets = run(tmp_path, train, exam, overlap=Overlap(frequent=3))
    assert report['kept'] == 4 and sets['exam']['found'] == 1


def test_the_command_and_its_report(tmp_path, capsys):
    question = text(20)
    train = write(tmp_path / 'a.jsonl', [{'inputs': question, 'note': text()}, {'inputs': text(), 'note': question}])
    (tmp_path / 'exam.txt').write_text(f'{question}\n\n{text()}')
    line = f'decontaminate --input={train} --evaluation={tmp_path}/exam.txt --output={tmp_path}/o.jsonl --fields=inputs'
    command, arguments = parse_arguments([*line.split(), f'--json={tmp_path}/r.json'], COMMANDS)
    command.run(arguments)
    out = capsys.readouterr().out
    assert 'kept 1 of 2 examples' in out and '50.0%' in out
    report = json.loads((tmp_path / 'r.json').read_text())
    assert report['removed'][0]['evaluation'] == f'{tmp_path}/exam.txt' and report['kept'] == 1


def test_a_benchmark_may_lie_in_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    question, other = text(), text()
    (tmp_path / 'gsm8k').mkdir()
    write(tmp_path / 'gsm8k' / 'test.jsonl', [{'question': question, 'answer': '#### 7'}])
    train = write(tmp_path / 'a.jsonl', [{'t': question}, {'t': other}])
    line = f'decontaminate --input={train} --benchmark=gsm8k=~/gsm8k --output={tmp_path}/o.jsonl'
    command, arguments = parse_arguments(line.split(), COMMANDS)
    command.run(arguments)
    assert kept(tmp_path / 'o.jsonl') == [{'t': other}]


@pytest.mark.slow  # imports TensorFlow
def test_tasks_and_benchmarks_are_evaluation_sets(tmp_path, capsys):
    question = 'Ann has three red apples and buys four more at the market . How many apples has Ann ?'
    (tmp_path / 'gsm8k').mkdir()
    write(tmp_path / 'gsm8k' / 'test.jsonl', [{'question': question, 'answer': 'She has 7. #### 7'}])
    write(tmp_path / 'mine.jsonl', [{'inputs': text(20), 'targets': 'x'}])
    train = write(tmp_path / 'a.jsonl', [{'t': question}, kept(tmp_path / 'mine.jsonl')[0], {'t': text()}])
    settings = (
        "--gin.FileTask.name='decontaminated'",
        f"--gin.FileTask.train='{tmp_path}/mine.jsonl'",
        f"--gin.FileTask.test='{tmp_path}/mine.jsonl'",
        '--gin.DataConfig.file_tasks=[@FileTask()]',
    )
    line = f'decontaminate --input={train} --benchmark=gsm8k={tmp_path}/gsm8k --task=decontaminated'
    command, arguments = parse_arguments([*line.split(), f'--output={tmp_path}/o.jsonl', *settings], COMMANDS)
    command.run(arguments)
    sets = json.loads((tmp_path / 'o.report.json').read_text())['evaluations']
    assert {name: entry['removed'] for name, entry in sets.items()} == {'decontaminated': 1, 'gsm8k': 1}
    assert len(kept(tmp_path / 'o.jsonl')) == 1


@pytest.mark.parametrize(
    'exam,options,line',
    [
        ([{'id': 3}], {}, 'has no text of 8 or more words in 1 examples'),
        ([{'q': '!!! 😀 ???'}], {}, 'has no text of 8 or more words'),
        ([{'q': text()}], dict(fields=['body']), "no field 'body'.*Set --fields"),
        ([{'q': text()}], dict(unit='page'), '--unit=page'),
    ],
)
def test_bad_input_is_one_line(tmp_path, exam, options, line):
    with pytest.raises(UserError, match=line):
        run(tmp_path, [{'text': text()}], {'exam': exam}, **options)
    assert not (tmp_path / 'o.jsonl').exists()


def test_settings_out_of_range_and_sets_given_twice(tmp_path):
    for wrong in (dict(ngram=0), dict(min_words=14), dict(min_words=0), dict(share=1.5), dict(frequent=-1)):
        with pytest.raises(UserError, match=f'--{next(iter(wrong))}='):
            Overlap(**wrong)
    exam = write(tmp_path / 'exam.jsonl', [{'q': text()}])
    with pytest.raises(UserError, match='is given twice'):
        decontaminate([exam], str(tmp_path / 'o.jsonl'), [evaluation_files(exam)] * 2)
    with pytest.raises(UserError, match='not one of the inputs'):
        decontaminate([exam], exam, [evaluation_files(exam)])
    train, exam_again = write(tmp_path / 'train.jsonl', kept(exam) * 2), f'{tmp_path}/./exam.jsonl'
    with pytest.raises(UserError, match='not one of the inputs'):
        decontaminate([train], exam_again, [evaluation_files(exam)])
    with pytest.raises(UserError, match='--json=.*exam.jsonl must not be one of the inputs'):
        decontaminate([train], str(tmp_path / 'o.jsonl'), [evaluation_files(exam)], report_file=exam_again)
    with pytest.raises(UserError, match='--frequent=1 leaves no n-gram'):
        decontaminate([train], str(tmp_path / 'o.jsonl'), [evaluation_files(exam)], overlap=Overlap(frequent=1))
