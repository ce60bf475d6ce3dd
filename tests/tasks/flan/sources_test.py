"""tasks/flan/sources.py: data sets of the Hugging Face hub, in the schemas of their cards, become items."""

import dataclasses

import pytest

from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.records import hub
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks.flan import mixtures as flan
from t5flan.tasks.flan.sources import read_items, source_of
from t5flan.tasks.flan.table import items, split_slice
from tests.tasks.flan.hub_rows import ITEMS, SETS, records_of, stand_in
from tests.tasks.flan.table_rows import HUB_ROWS, TABLE_ROWS
from tests.vocabulary import vocabulary_chosen

seqio = pytest.importorskip('seqio')


def test_every_data_set_of_the_hub_has_a_stand_in():
    assert {TABLE_ROWS[name].hub.partition(',')[0] for name in HUB_ROWS} == set(SETS)
    for name in HUB_ROWS:
        hub.parse_name(f'hf:{TABLE_ROWS[name].hub},split=train')
    alike = {'adversarial_qa_dbidaf', 'adversarial_qa_droberta', 'duorc_paraphrase', 'duorc_paraphrase_title'}
    assert set(HUB_ROWS) - set(ITEMS) == alike | {'wiki_qa_topic_of_question', 'wiki_qa_topic_of_answer'}


@pytest.mark.parametrize('name', ITEMS)
def test_a_row_reads_the_schema_of_the_card(name, tmp_path):
    row = stand_in(tmp_path, name, 3 if not any('[' in split for split in TABLE_ROWS[name].splits.values()) else 201)
    (item, *_) = items(row, records_of(row)[0])
    assert ITEMS[name].items() <= item.items()
    assert item.keys() == {*row.fields, 'answer', *(['options'] if row.of else [])}


def test_splits_are_slices_and_rates_need_no_reading(tmp_path):
    row = stand_in(tmp_path, 'amazon_polarity', 250)
    assert [len(records_of(row, split)) for split in ('train', 'validation', 'test')] == [50, 200, 250]
    source = source_of(TABLE_ROWS['amazon_polarity'])
    assert source.num_input_examples('train') == 3_599_800 and source.num_input_examples('test') is None
    assert split_slice('train[10:]') == ('train', 10, None) and split_slice('valid') == ('valid', None, None)
    assert split_slice('train[1%:]') is None
    assert 0 < len(read_items(row, source_of(row), count=20)) <= 20


def test_a_task_of_the_hub_is_read_from_rows_to_token_ids(tmp_path):
    row = dataclasses.replace(stand_in(tmp_path, 'sciq', 30), name='stand_in')
    flan.register_task(row)
    try:
        config = DataConfig(row.task, 4, {'inputs': 300, 'targets': 60}, 'bytes', split='validation')
        made = eval_examples(config, ByteVocabulary())
        assert len(made) == 30 and all('What burns?' in example['inputs_pretokenized'] for example in made)
    finally:
        seqio.TaskRegistry.remove(row.task)


@pytest.mark.parametrize('name', ['kilt_hotpotqa', 'task_master', 'dmcc_python'])
def test_a_task_with_nested_records_is_a_seqio_task(name, tmp_path):
    """SeqIO reads it through tf.data, which takes no lists of objects."""
    row = dataclasses.replace(stand_in(tmp_path, name, 203), name='stand_in')
    flan.register_task(row)
    try:
        with vocabulary_chosen(ByteVocabulary()):
            dataset = seqio.TaskRegistry.get(row.task).get_dataset(
                {'inputs': 99, 'targets': 99}, 'train', shuffle=False
            )
            made = list(dataset.take(3).as_numpy_iterator())
        assert len(made) == 3 and all(example['targets'][-1] == 1 for example in made)
    finally:
        seqio.TaskRegistry.remove(row.task)


def test_records_that_make_no_item_and_records_with_other_fields(tmp_path):
    unanswered = stand_in(tmp_path / 'a', 'duorc_self', 2, answers=[''], no_answer=True)
    assert next(items(unanswered, records_of(unanswered)[0]))['answer'] == 'unanswerable'
    wrong = stand_in(tmp_path / 'b', 'wiki_qa', 2, label=0)
    assert not list(items(wrong, records_of(wrong)[0]))
    short = stand_in(tmp_path / 'c', 'dream_last_turn', 2, dialogue=['W: Hi.'])
    assert not list(items(short, records_of(short)[0]))
    java = stand_in(tmp_path / 'd', 'dmcc_python', 2, solutions={'language': [4], 'solution': ['class A']})
    assert not list(items(java, records_of(java)[0]))
    row = dataclasses.replace(wrong, make=(), answer='{reply}')
    with pytest.raises(UserError, match="wiki_qa: 'reply' is not in its records, which have question_id"):
        list(items(row, records_of(row)[0]))
    missing = dataclasses.replace(wrong, hub=str(tmp_path / 'none'))
    with pytest.raises(UserError, match='none'):
        records_of(missing)
    other_split = dataclasses.replace(wrong, splits={'train': 'dev'})
    with pytest.raises(UserError, match="no split 'dev'"):
        records_of(other_split)


@pytest.mark.parametrize('name', ['qasc_is_correct', 'race_high_is_right', 'social_iqa_is_valid'])
def test_half_of_the_proposed_answers_are_right(name):
    made = {
        'qasc_is_correct': lambda i: {
            'question': f'{i}?', 'choices': {'text': ['a', 'b', 'c'], 'label': ['A', 'B', 'C']}, 'answerKey': 'B'},
        'race_high_is_right': lambda i: {
            'article': 'x', 'questions': [f'{i}?'], 'options': [['a', 'b', 'c']], 'answers': ['B']},
        'social_iqa_is_valid': lambda i: {'input': f'{i}? \\n (a) a (b) b (c) c \\n x', 'output': 'b'},
    }[name]  # fmt: skip
    found = [next(items(TABLE_ROWS[name], made(i))) for i in range(300)]
    assert 110 < sum(item['answer'] == 'yes' for item in found) < 190
    assert all((' "b" ' in f' {item["question"]} ') == (item['answer'] == 'yes') for item in found)
    wrong = {text for item in found for text in ('"a"', '"c"') if text in item['question']}
    assert wrong == {'"a"', '"c"'}
