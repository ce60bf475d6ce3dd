"""tasks/templates/*.json: all wordings render, differ, name every required field and give nothing away."""

import json
import re

import pytest

from t5flan.data.prompting.templates import LAYOUTS, load_templates
from t5flan.tasks.families import TEMPLATES, families, family

FLAN_FAMILIES = {
    'nli', 'commonsense', 'sentiment', 'paraphrase', 'closed_book_qa', 'reading_comprehension',
    'reading_with_commonsense', 'coreference', 'translation', 'summarization', 'struct_to_text', 'word_sense',
    'linguistic_acceptability', 'text_classification', 'program_synthesis', 'dialogue', 'cot_arithmetic',
    'cot_commonsense', 'cot_nli', 'cot_open_domain',
}  # fmt: skip


def item_of(wordings, optional=True):
    """An item with texts that no wording contains."""
    names = (*wordings.fields, *(wordings.optional if optional else ()))
    return {name: f'<{name} text>' for name in names} | {'answer': '<the answer>', 'rationale': '<the reason>'}


def test_all_families_of_the_flan_paper_exist():
    assert not FLAN_FAMILIES - set(families())
    assert all(len(family(name).templates) >= 10 for name in families())


@pytest.mark.parametrize('name', families())
def test_every_wording_renders_with_its_fields(name):
    wordings = family(name)
    assert wordings.name == name
    item = {**item_of(wordings), 'options': '<the options>'}
    for template in (*wordings.templates, *wordings.inverted):
        for inputs in (template.inputs, template.listed):
            prompt = template.head.format_map(item) + inputs.format_map(item)
            targets = template.targets.format_map(item)
            assert not set('{}') & set(prompt + targets), 'a brace is left'
            assert prompt == prompt.strip() and targets == targets.strip() and '  ' not in prompt
            assert prompt.count('<the options>') == (inputs is template.listed)
        assert '<the options>' not in template.inputs.format_map(item)


@pytest.mark.parametrize('name', families())
def test_no_wording_gives_the_answer_away(name):
    wordings = family(name)
    item = item_of(wordings)
    for template in wordings.templates:
        prompt = template.head.format_map(item) + template.inputs.format_map(item)
        assert '<the answer>' not in prompt and '<the reason>' not in prompt
        assert template.targets.format_map(item) == '<the answer>'
    for template in wordings.inverted:
        prompt = template.inputs.format_map(item)
        for shown in re.findall(r'<[a-z_ ]+>', template.targets.format_map(item)):
            assert shown not in prompt or shown == '<the answer>', 'the prompt gives away the target'


@pytest.mark.parametrize('name', families())
def test_wordings_need_no_optional_field_and_no_options(name):
    """A data set with only the required fields still has five wordings, at least one of each kind."""
    wordings = family(name)
    present = {*wordings.fields, 'answer'}
    usable = [template for template in wordings.templates if template.needs <= present]
    assert len(usable) >= 5 and any(template.options is not True for template in usable)
    assert any(template.options is not False for template in usable)
    assert any(template.cued for template in usable) and any(template.head for template in usable), 'variety'


@pytest.mark.parametrize('name', families())
def test_all_wordings_differ(name):
    seen = {}
    for template in (*family(name).templates, *family(name).inverted):
        words = ' '.join(re.findall(r'\w+', template.head + template.inputs + ' for ' + template.targets)).lower()
        assert words not in seen, f'{template.inputs!r} differs from {seen.get(words)!r} only in punctuation'
        seen[words] = template.inputs


def test_every_family_has_inverted_wordings():
    assert all(family(name).inverted for name in families())


def test_layouts_differ_and_list_the_answer():
    content = json.loads((TEMPLATES / LAYOUTS).read_text('utf-8'))
    wordings = family('nli')
    assert len(wordings.options) == len(content['options']) >= 10 and len(wordings.exemplars) >= 8
    for layouts in (wordings.options, wordings.exemplars):
        assert len(set(layouts)) == len(layouts)
    for layout in wordings.options:
        listing, answer = layout.listing(['red', 'blue']), layout.shown(['red', 'blue'], 'blue')
        assert 'red' in listing and answer in listing
    assert any(not layout.cues for layout in wordings.exemplars)


def test_every_file_is_a_family_or_known():
    names = {path.stem for path in TEMPLATES.glob('*.json')} - {'practice', LAYOUTS.removesuffix('.json')}
    assert names == set(families())
    for name in names:
        load_templates(TEMPLATES / f'{name}.json')
