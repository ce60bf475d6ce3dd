"""t5flan/corpora/deduplication.py: duplicates are removed, other texts are kept, and the report says why."""

import json
import random
from pathlib import Path

import pytest

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.corpora.deduplication import Cuts, Rules, deduplicate
from t5flan.errors import UserError

RNG = random.Random(0)
WORDS = [f'word{i}' for i in range(5000)]


def text(words=200):
    return ' '.join(RNG.choices(WORDS, k=words))


def changed(original, count):
    """The text with `count` words in a row replaced: about (count + 4) of its 5-grams are others."""
    words = original.split()
    words[50 : 50 + count] = text(count).split()
    return ' '.join(words)


def write(path, rows):
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
    return str(path)


def test_exact_duplicates_need_no_library(tmp_path):
    rows = [{'text': text, 'id': i} for i, text in enumerate(['a b  c', 'a b c\n', 'A b c', 'x'])]
    path, output = write(tmp_path / 'a.jsonl', rows), str(tmp_path / 'o' / 'out.jsonl')
    report = deduplicate([path], output, rules=Rules(threshold=1))
    kept = [json.loads(line) for line in (tmp_path / 'o' / 'out.jsonl').read_text('utf-8').splitlines()]
    assert kept == [rows[0], rows[2], rows[3]] and (report['exact'], report['near'], report['kept']) == (1, 0, 3)
    assert report['removed'][0] | {'begins': ''} == {
        'text': f'{tmp_path}/a.jsonl line 2',
        'why': 'exact',
        'of': f'{tmp_path}/a.jsonl line 1',
        'similarity': 1.0,
        'begins': '',
    }
    assert (report['characters'], report['characters_kept']) == (6 + 6 + 5 + 1, 6 + 5 + 1)


def test_near_duplicates_are_found_and_others_kept(tmp_path):
    originals = [text() for _ in range(200)]
    near = [changed(one, 3) for one in originals[:50]]  # 7 of 196 n-grams: Jaccard 0.93
    far = [changed(one, 80) for one in originals[50:100]]  # 84 of 196: 0.4
    path = write(tmp_path / 'a.jsonl', [{'text': one} for one in originals + near + far + originals[:5]])
    report = deduplicate([path], str(tmp_path / 'out.jsonl'))
    assert (report['texts'], report['exact']) == (305, 5)
    assert report['near'] >= 48 and report['kept'] == 305 - 5 - report['near'] >= 250
    for one in report['removed']:
        number = lambda where: int(where.split()[-1])
        if one['why'] == 'near':
            assert number(one['text']) - number(one['of']) == 200 and one['similarity'] >= 0.8
    again = deduplicate([str(tmp_path / 'out.jsonl')], str(tmp_path / 'twice.jsonl'))
    assert again['kept'] == again['texts'], 'a corpus without duplicates stays as it is'


def test_text_files_by_paragraph_and_the_command(tmp_path, capsys):
    (tmp_path / 'a.txt').write_text('one two\n\nthree four\n\none two\n')
    line = f'deduplicate --input={tmp_path}/a.txt --output={tmp_path}/o.jsonl --unit=paragraph --threshold=1'
    command, arguments = parse_arguments(line.split(), COMMANDS)
    command.run(arguments)
    assert 'o.jsonl: kept 2 of 3 texts' in capsys.readouterr().out
    assert json.loads((tmp_path / 'o.report.json').read_text('utf-8'))['removed'][0]['of'].endswith('a.txt paragraph 1')
    assert [json.loads(row)['text'] for row in (tmp_path / 'o.jsonl').read_text().splitlines()] == [
        'one two',
        'three four',
    ]


def rows_of(path):
    return list(map(json.loads, Path(path).read_text('utf-8').splitlines()))


def texts_of(path):
    return [row['text'] for row in rows_of(path)]


@pytest.mark.parametrize('threshold', [0.8, 1])
def test_texts_without_words_are_compared_exactly(tmp_path, threshold):
    texts = ['!!!', '???', '😀', '😀😀', '…', '', '!!!', '😀']
    path = write(tmp_path / 'a.jsonl', [{'text': one} for one in texts])
    report = deduplicate([path], str(tmp_path / 'o.jsonl'), rules=Rules(threshold))
    assert texts_of(tmp_path / 'o.jsonl') == texts[:6] and (report['exact'], report['near']) == (2, 0)


@pytest.mark.parametrize(
    'pair',
    [
        ('दिन में पानी पीना', 'दान मे पानि पीने'),  # the same consonants with other vowels
        ('กินข้าวที่นี่', 'กันขาวท่นุ่'),
        ('كَتَبَ وَلَد دَرْس', 'كُتِبَ وُلِد دُرُس'),
    ],
)
def test_combining_marks_make_texts_different(tmp_path, pair):
    path = write(tmp_path / 'a.jsonl', [{'text': one} for one in pair])
    assert deduplicate([path], str(tmp_path / 'o.jsonl'))['kept'] == 2


def test_an_exact_copy_of_a_near_duplicate_repeats_its_original(tmp_path):
    original = text()
    near = changed(original, 2)
    path = write(tmp_path / 'a.jsonl', [{'text': one} for one in (original, near, near, original)])
    report = deduplicate([path], str(tmp_path / 'o.jsonl'))
    assert [(one['why'], one['of'].split()[-1]) for one in report['removed']] == [('near', '1')] * 2 + [('exact', '1')]
    assert texts_of(tmp_path / 'o.jsonl') == [original]


@pytest.mark.parametrize('line', ['{"text": 3}', '{"text": "cut off', '{"body": "x"}'])
def test_an_error_leaves_no_file(tmp_path, line):
    (tmp_path / 'a.jsonl').write_text('{"text": "a b c"}\n' * 100 + line)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'o.jsonl').write_text('before')
    for cuts in (Cuts(), Cuts(boilerplate=2, substring=10)):
        with pytest.raises(UserError, match='line 101'):
            report = str(tmp_path / 'out' / 'report.json')
            deduplicate([f'{tmp_path}/a.jsonl'], str(tmp_path / 'out' / 'o.jsonl'), cuts=cuts, report_file=report)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['o.jsonl']
    assert (tmp_path / 'out' / 'o.jsonl').read_text() == 'before'


@pytest.mark.parametrize('compare', ['paragraph', 'line'])
def test_parts_are_put_back_into_their_texts(tmp_path, compare):
    between = {'paragraph': '\n\n', 'line': '\n'}[compare]
    one, two, three = text(30), text(30), text(30)
    texts = [between.join(parts) for parts in ((one, two, 'Yes.'), (two, three, 'Yes.'), (one, two), (three.upper(),))]
    path = write(tmp_path / 'a.jsonl', [{'id': i, 'text': one} for i, one in enumerate(texts)])
    output = str(tmp_path / 'o.jsonl')
    report = deduplicate([path], output, cuts=Cuts(compare, min_length=10))
    rows = rows_of(output)
    assert rows == [{'id': 0, 'text': texts[0]}, {'id': 1, 'text': between.join([three, 'Yes.'])}]
    assert (report['documents'], report['documents_kept'], report['texts'], report['kept']) == (4, 2, 9, 5)
    assert report['removed'][0]['text'] == f'{path} line 2 {compare} 1'
    assert report['removed'][0]['of'] == f'{path} line 1 {compare} 2'


def test_nested_fields_and_several_globs(tmp_path):
    for name, body in (('a', 'one two'), ('b', 'one  two'), ('c', 'three')):
        write(tmp_path / f'{name}.jsonl', [{'id': name, 'page': {'body': body, 'title': 't'}}])
    write(tmp_path / 'd.json', [{'id': 'd', 'page.body': 'three four'}])
    (tmp_path / 'd.json').write_text('[{"id": "d", "page.body": "three four"}]')
    patterns = [f'{tmp_path}/[ab].jsonl', f'{tmp_path}/c.jsonl', f'{tmp_path}/d.json']
    output = str(tmp_path / 'o.jsonl')
    report = deduplicate(patterns, output, 'page.body', rules=Rules(threshold=1))
    rows = rows_of(output)
    assert [row['id'] for row in rows] == ['a', 'c', 'd'] and report['exact'] == 1
    assert rows[0] == {'id': 'a', 'page': {'body': 'one two', 'title': 't'}}


def test_boilerplate_and_passages_are_cut(tmp_path):
    notice = 'Copyright by nobody; all of this may be copied, sold and read aloud to children and to pets.'
    rows = [{'page': {'body': f'Menu | Home\n{text(40)} {number} {notice} {text(5)}'}} for number in range(5)]
    path, output = write(tmp_path / 'a.jsonl', rows), str(tmp_path / 'o.jsonl')
    cuts = Cuts(boilerplate=5, substring=60)
    report = deduplicate([path], output, 'page.body', cuts=cuts, report_file=str(tmp_path / 'report.json'))
    left = [row['page']['body'] for row in rows_of(output)]
    assert len(left) == 5 and not any('Menu' in one for one in left)
    assert [notice in one for one in left] == [True] + [False] * 4
    assert report['boilerplate']['most'] == [{'line': 'Menu | Home', 'times': 5}]
    assert report['passages']['passages'] == 4
    assert (
        report['characters'] - report['characters_kept'] == 5 * len('Menu | Home\n') + report['passages']['characters']
    )
    assert json.loads((tmp_path / 'report.json').read_text()) == report


def test_the_list_of_a_report_need_not_fit_in_memory(tmp_path):
    path = write(tmp_path / 'a.jsonl', [{'text': 'same'}] * 1000)
    report = deduplicate([path], str(tmp_path / 'o.jsonl'), report_file=str(tmp_path / 'report.json'))
    written = json.loads((tmp_path / 'report.json').read_text())
    assert len(written['removed']) == 999 and written['removed'][:100] == report['removed']
    assert {**written, 'removed': 0} == {**report, 'removed': 0}


@pytest.mark.parametrize(
    'options,line',
    [
        (dict(unit='word'), '--unit=word'),
        (dict(field='body'), "no field 'body'.*Set --field"),
        (dict(output='out.txt'), '--output=.*out.txt must be a .jsonl file'),
        (dict(output='a.jsonl'), 'not one of the inputs'),
    ],
)
def test_bad_input_is_one_line(tmp_path, options, line):
    path = write(tmp_path / 'a.jsonl', [{'text': 'a'}])
    output = str(tmp_path / options.pop('output', 'out.jsonl'))
    with pytest.raises(UserError, match=line):
        deduplicate([path], output, rules=Rules(threshold=1), **options)
    for wrong in (
        dict(compare='word'),
        dict(min_length=-1),
        dict(boilerplate=1),
        dict(substring=3),
        dict(memory=0),
        dict(memory=float('inf')),
    ):
        with pytest.raises(UserError, match=f'--{next(iter(wrong))}='):
            Cuts(**wrong)
    for wrong in (dict(threshold=0), dict(threshold=1.5), dict(ngram=0), dict(permutations=1)):
        with pytest.raises(UserError, match='--'):
            Rules(**wrong)
