"""t5flan/data/vocabulary/coverage.py: how much of each language a vocabulary writes, before and after."""

import json
import random

import pytest

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.data.vocabulary import training
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.coverage import coverage, report
from t5flan.data.vocabulary.training import find_languages, sampling_factors, train_sentencepiece
from t5flan.errors import UserError

SYLLABLES = {'en': ['ap', 'ples', 'pe', 'ars', 'plu', 'ms'], 'ru': ['ябл', 'оки', 'гру', 'ши', 'сли', 'вы']}
SIZES = {'en': 3000, 'ru': 150}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('languages')
    for name, syllables in SYLLABLES.items():
        draw = random.Random(name).choices
        lines = [' '.join(''.join(draw(syllables, k=3)) for _ in range(8)) for _ in range(SIZES[name])]
        (folder / f'{name}.txt').write_text('\n'.join(lines), 'utf-8')
    return folder


def inputs(files):
    return [f'{name}={files}/{name}.txt' for name in SYLLABLES]


@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_shares_are_those_of_the_formula(files, alpha):
    languages = find_languages(inputs(files))
    sizes = training.sizes_of(languages)
    factors = sampling_factors(languages, alpha)
    expected = {name: size**alpha / sum(other**alpha for other in sizes.values()) for name, size in sizes.items()}
    for name, paths in languages.items():
        read = sum(len(line.encode()) for line in training.lines_of(paths, (), factors[name]))
        assert read / sum(sizes.values()) == pytest.approx(expected[name], rel=0.1), name
    assert report(ByteVocabulary(), languages, (), alpha)['ru']['share'] == pytest.approx(expected['ru'])


def test_an_exponent_gives_a_small_language_more_pieces(files, tmp_path, capsys):
    found = {}
    for alpha in (1.0, 0.3):
        out = f'--output={tmp_path}/v.model --json={tmp_path}/report.json --compare=bytes --size=420'
        languages = ' '.join(f'--input={one}' for one in inputs(files))
        line = f'vocabulary {languages} {out} --extra_ids=10 --alpha={alpha}'
        command, arguments = parse_arguments(line.split(), COMMANDS)
        command.run(arguments)
        found[alpha] = json.loads((tmp_path / 'report.json').read_text())
    shorter = [found[alpha]['ru']['after']['tokens_per_character'] for alpha in (0.3, 1.0)]
    assert shorter[0] < shorter[1], shorter
    assert 1.8 < found[0.3]['ru']['before']['tokens_per_character'] < 2, 'two bytes a letter'
    assert 'of the training text' in capsys.readouterr().out


def words(ends=('',)):
    draw = random.Random(0)
    return [
        ' '.join(''.join(draw.choices(SYLLABLES['en'], k=3)) for _ in range(9)) + draw.choice(ends) for _ in range(400)
    ]


def test_characters_without_a_piece_are_counted():
    texts = [*words(), 'яблоки']
    trained = train_sentencepiece(texts, 320, 10, (), character_coverage=0.999)
    assert coverage(trained, ['apples'])['unknown'] == 0
    assert coverage(trained, ['ябap'])['unknown'] == 0.5
    assert coverage(train_sentencepiece(texts, 320, 10, (), character_coverage=1), ['ябap'])['unknown'] == 0
    assert coverage(ByteVocabulary(), ['яп']) == {'tokens_per_character': 2.0, 'unknown': 0.0}
    assert coverage(trained, []) == {'tokens_per_character': 0.0, 'unknown': 0.0}


def test_digits_are_split_unless_asked():
    texts = words((' 1984', ' 1985', ' 1776'))
    split, whole = (train_sentencepiece(texts, 322, 10, (), split_digits=choice) for choice in (True, False))
    assert len(whole.encode('1984')) < len(split.encode('1984')) and len(split.encode('1984')) >= 4


def test_bad_input_is_one_line(files, tmp_path):
    train = lambda *given, **options: training.train_vocabulary(given, 400, tmp_path / 'v.model', **options)
    (tmp_path / 'empty.txt').write_text('')
    for options, line in (
        ({'alpha': -0.1}, '--alpha=-0.1, expected a number from 0 to 1'),
        ({'alpha': float('nan')}, '--alpha=nan'),
        ({'character_coverage': 0.5}, '--character_coverage=0.5, expected a number from 0.98 to 1'),
    ):
        with pytest.raises(UserError, match=line):
            train(*inputs(files), **options)
    with pytest.raises(UserError, match='empty.txt is empty. Set --input'):
        train(*inputs(files), f'fr={tmp_path}/empty.txt')
    with pytest.raises(UserError, match='no such file'):
        train(f'fr={tmp_path}/none.txt')
