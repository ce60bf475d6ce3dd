"""tasks/flan/records.py: records become what the rows of the table name, and marks of the sources are removed."""

import pytest

from t5flan.tasks.flan.table import items
from tests.tasks.flan.table_rows import BY_HAND, TABLE_ROWS


@pytest.mark.parametrize('name', BY_HAND)
def test_records_by_hand(name):
    record, expected = BY_HAND[name]
    item = next(items(TABLE_ROWS[name], record))
    assert expected.items() <= item.items()


def test_marks_of_the_sources_are_removed():
    rows = {
        'hellaswag': (
            {'context': '[header] How to run [title] Start.', 'endings': ['[step] Go.', 'Sit.'], 'label': 0},
            'context', 'How to run Start.'),
        'dart': (
            {'tripleset': ['[TABLECONTEXT] [TITLE] List', 'Mars_Hill | JOINED | 1973'], 'target': 'x'},
            'data', 'List; Mars Hill, JOINED, 1973'),
        'web_nlg_en': (
            {'input': ['Aarhus_Airport | city | Aarhus'], 'target': 'x'}, 'data', 'Aarhus Airport, city, Aarhus'),
        'common_gen': ({'concepts': ['dog', 'run'], 'target': 'x'}, 'data', 'dog, run'),
        'opinion_abstracts_rotten_tomatoes': (
            {'_critics': {'key': list('abcdefghijkl'), 'value': list('abcdefghijkl')}, '_movie_name': 'the_film',
             '_critic_consensus': 'x'},
            'kind', 'list of reviews of the film the film'),
        'multi_news': ({'document': 'One. ||||| Two.', 'summary': 'x'}, 'document', 'One. \n Two.'),
        'samsum': ({'dialogue': 'A: Hi\r\nB: Hi', 'summary': 'x'}, 'document', 'A: Hi\nB: Hi'),
        'multirc': (
            {'paragraph': '<b>Sent 1: </b>Hi.<br>', 'question': 'q', 'answer': 'a', 'label': 0},
            'passage', 'Sent 1: Hi.'),
        'record': (
            {'passage': 'One.\n@highlight\nTwo.', 'query': 'q', 'entities': ['A', 'A'], 'answers': ['A']},
            'passage', 'One.\nTwo.'),
        'fix_punct': ({'en': "Yes, it's well-made.", 'da': ''}, 'text', "Yes it's well-made"),
        'word_segment': ({'en': 'a b', 'da': ''}, 'text', 'ab'),
    }  # fmt: skip
    for name, (record, field, text) in rows.items():
        (item,) = items(TABLE_ROWS[name], record)
        assert item[field] == text, name
    (item,) = items(TABLE_ROWS['hellaswag'], rows['hellaswag'][0])
    assert item['options'] == ['Go.', 'Sit.']
    (item,) = items(TABLE_ROWS['opinion_abstracts_rotten_tomatoes'], rows['opinion_abstracts_rotten_tomatoes'][0])
    assert item['document'].count('\n') == 9


def test_conversations_and_tables():
    record = {'story': 's', 'questions': ['Who?', 'Why?'], 'answers': {'input_text': ['Jo', 'So']}}
    (item,) = items(TABLE_ROWS['coqa'], record)
    assert item['question'].endswith('(1) Who? (2) Why?') and item['answer'] == '(1) Jo (2) So'
    turns = ['a?', 'b.', 'c?', 'd.']
    (item,) = items(TABLE_ROWS['wiki_dialog'], {'utterances': turns, 'title': 't'})
    end = turns.index(item['answer'])
    assert item['dialogue'] == '\n'.join(f'{"AB"[i % 2]}: {turn}' for i, turn in enumerate(turns[:end])) and end > 0
    table = {'column_header': ['name', 'birth_date'], 'content': ['Jo', '1900']}
    (item,) = items(TABLE_ROWS['wiki_bio'], {'input_text': {'table': table}, 'target_text': 'x'})
    assert item['data'] == 'name: Jo; birth date: 1900'


def test_translation_goes_both_ways():
    made = [next(items(TABLE_ROWS['wmt16_deen'], {'de': f'Satz {i}', 'en': f'Sentence {i}'})) for i in range(200)]
    for item in made:
        is_german = item['source_language'] == 'German'
        assert is_german == item['text'].startswith('Satz') == item['answer'].startswith('Sentence')
    assert 60 < sum(item['source_language'] == 'German' for item in made) < 140
