"""t5flan/data/prompting/templates.py: families of wordings from JSON, and one clear line for a faulty file."""

import json

import pytest

from t5flan.data.prompting.templates import load_templates, make_template
from t5flan.errors import UserError

NLI = {
    'family': 'nli',
    'fields': ['premise', 'hypothesis'],
    'optional': ['title'],
    'templates': [
        '{premise} So {hypothesis}?',
        {'head': 'Compare.\n', 'inputs': '{premise} / {hypothesis}\n{options}\nAnswer:'},
    ],
    'inverted': [{'inputs': '{premise} is {answer} to what?', 'targets': '{hypothesis}'}],
    'options': [{'before': 'Options:\n', 'option': '({letter}) {option}', 'answer': '({letter})'}],
    'exemplars': [{'inputs': 'Q: {inputs}\nA:', 'targets': ' {targets}'}],
}


def write(folder, **changes):
    path = folder / 'nli.json'
    path.write_text(json.dumps({**NLI, **changes}), 'utf-8')
    return path


def test_a_family_is_read_from_its_file(tmp_path):
    family = load_templates(write(tmp_path))
    first, second = family.templates
    assert (family.name, family.fields, family.optional) == ('nli', ('premise', 'hypothesis'), ('title',))
    assert (first.inputs, first.listed) == ('{premise} So {hypothesis}?', '{premise} So {hypothesis}?\n{options}')
    assert (second.inputs, second.listed) == (
        '{premise} / {hypothesis}\nAnswer:',
        '{premise} / {hypothesis}\n{options}\nAnswer:',
    )
    assert (second.head, second.cued, first.cued, first.targets) == ('Compare.\n', True, False, '{answer}')
    assert first.needs == {'premise', 'hypothesis', 'answer'} and family.inverted[0].options is False
    (layout,) = family.options
    assert layout.listing(['yes', 'no']) == 'Options:\n(A) yes\n(B) no' and layout.shown(['yes', 'no'], 'no') == '(B)'
    assert family.exemplars[0].cues


def test_families_without_layouts_use_those_beside_the_file(tmp_path):
    (tmp_path / 'layouts.json').write_text(
        json.dumps(
            {'options': [{'option': '* {option}'}], 'exemplars': [{'inputs': '{inputs}\n', 'targets': '{targets}'}]}
        ),
        'utf-8',
    )
    path = tmp_path / 'nli.json'
    path.write_text(
        json.dumps({key: value for key, value in NLI.items() if key not in ('options', 'exemplars')}), 'utf-8'
    )
    family = load_templates(path)
    assert family.options[0].listing(['a', 'b']) == '* a\n* b' and family.options[0].shown(['a', 'b'], 'b') == 'b'
    assert not family.exemplars[0].cues


def test_options_go_above_a_last_line_that_only_asks():
    assert make_template('{text}\nTopic:').listed == '{text}\n{options}\nTopic:'
    assert make_template('{text}\nTopic of {text}:').listed == '{text}\nTopic of {text}:\n{options}'
    assert make_template('{text}{options} Choose.').inputs == '{text} Choose.'


@pytest.mark.parametrize('changes, words', [
    ({'templates': ['{premise} {hypothesis} {premisse}']},
     'templates[0].inputs names {premisse}; it may name premise, hypothesis, title, answer'),
    ({'templates': ['{premise} and that is all']}, 'templates[0]: "inputs" lacks {hypothesis}'),
    ({'templates': ['{premise} {hypothesis} {answer}']}, 'templates[0]: "inputs" gives away {answer}'),
    ({'templates': [{'inputs': '{premise} {hypothesis}', 'targets': 'yes'}]},
     'templates[0]: "targets" has no {answer}'),
    ({'templates': ['{premise} {hypothesis']}, "templates[0].inputs: expected '}' before end of string"),
    ({'templates': ['{premise} {hypothesis} {}']}, 'templates[0].inputs: {} is not the name of a field'),
    ({'templates': [NLI['templates'][0]] * 2}, 'appears 2 times'),
    ({'templates': []}, '"templates" is empty'),
    ({'templates': 'one'}, '"templates" is str, it must be a list'),
    ({'templates': [3]}, 'templates[0] is neither a text nor an object with "inputs"'),
    ({'templates': [{'inputs': '{premise} {hypothesis}', 'option': True}]},
     "templates[0] has the key 'option'; it may have head, inputs"),
    ({'templates': [{'inputs': '{premise} {hypothesis}', 'options': 'yes'}]}, '"options" true, false or absent'),
    ({'inverted': [{'inputs': '{premise}?', 'targets': '{hypothesis}'}]},
     'inverted[0]: an inverted wording must have {answer} or {rationale}'),
    ({'inverted': [{'inputs': '{answer}?', 'targets': 'yes'}]}, 'inverted[0]: "targets" names no field'),
    ({'fields': []}, '"fields" is empty'),
    ({'fields': ['premise', 'answer']}, "\"fields\" lists 'answer', a reserved name"),
    ({'fields': ['a b']}, '"fields" must be a list of names'),
    ({'options': [{'option': '{letter}'}]}, 'options[0].option has no {option}'),
    ({'options': [{'option': '{choice}{option}'}]},
     'options[0].option names {choice}; it may name letter, number, option'),
    ({'exemplars': [{'inputs': '{inputs}'}]}, 'exemplars[0].targets has no {targets}'),
    ({'exemplars': []}, '"exemplars" is empty'),
    ({'wordings': []}, "has the key 'wordings'"),
])  # fmt: skip
def test_a_faulty_file_is_named_in_one_line(tmp_path, changes, words):
    path = write(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        load_templates(path)
    assert words in str(error.value) and str(path) in str(error.value) and '\n' not in str(error.value)


def test_a_missing_file_and_one_that_is_not_json(tmp_path):
    with pytest.raises(UserError, match='nli.json: No such file'):
        load_templates(tmp_path / 'nli.json')
    (tmp_path / 'nli.json').write_text('{"fields": ', 'utf-8')
    with pytest.raises(UserError, match='nli.json: not JSON'):
        load_templates(tmp_path / 'nli.json')
    (tmp_path / 'nli.json').write_text('[]', 'utf-8')
    with pytest.raises(UserError, match='is a JSON list, it must be an object'):
        load_templates(tmp_path / 'nli.json')
