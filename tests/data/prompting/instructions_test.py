"""t5flan/data/prompting/instructions.py: properties of variants, exemplars and trimming over many seeded examples."""

import collections
import json

import numpy as np
import pytest

from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import Context, run_block
from t5flan.data.preprocessing.features import fit_example
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.prompting import instructions
from t5flan.data.prompting.instructions import Instruct
from t5flan.data.prompting.templates import load_templates
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.scoring.answers import extract_answer

VOCABULARY = ByteVocabulary()
DEFAULT = InstructionConfig()
PLAIN = InstructionConfig(few_shot=0, options=0, rationale=0, inverted=0)
FAMILY = {
    'family': 'sums',
    'fields': ['sum'],
    'templates': ['What is {sum}?', '{sum} =', {'head': 'Add up.\n', 'inputs': '<{sum}>{options}'}],
    'inverted': [{'inputs': 'Which sum gives {answer}?', 'targets': '{sum}'}],
    'options': [
        {'option': '({letter}) {option}', 'between': ' ', 'answer': '({letter})'},
        {'option': '[{option}]', 'between': ''},
    ],
    'exemplars': [
        {'inputs': 'Q: {inputs}\nA:', 'targets': ' {targets}'},
        {'inputs': '{inputs}\n', 'targets': '{targets}', 'before': 'Look.\n'},
    ],
}
ITEMS = [
    {'sum': f'{i} + {i % 7}', 'answer': str(i + i % 7), 'options': [str(i + i % 7 + k) for k in (1, 0, 5)],
     'rationale': f'{i} and {i % 7} more'}
    for i in range(1000, 1300)
]  # fmt: skip


@pytest.fixture(scope='module')
def family(tmp_path_factory):
    path = tmp_path_factory.mktemp('templates') / 'sums.json'
    path.write_text(json.dumps(FAMILY), 'utf-8')
    return load_templates(path)


def make(preprocessor, items=ITEMS, settings=DEFAULT, length=10_000, vocabulary=VOCABULARY, split='train', epoch=0):
    lengths = {'inputs': length} if length else {}
    options = dict(task='sums', split=split, epoch=epoch, instructions=settings)
    contexts = [Context(vocabulary, lengths, index=i, **options) for i in range(len(items))]
    return preprocessor.apply_block(items, contexts)


def text_of(example):
    return example.get('inputs_pretokenized', example['inputs'])


def test_a_plain_example_is_a_wording_and_its_answer(family):
    made = make(Instruct(family), settings=PLAIN)
    texts = {text_of(example).replace(item['sum'], '#') for example, item in zip(made, ITEMS)}
    assert texts == {'What is #?', '# =', 'Add up.\n<#>'}
    assert all(example['targets'] == example['answer'] == item['answer'] for example, item in zip(made, ITEMS))
    assert {example['variant'] for example in made} == {'zero-shot'}


def test_shares_are_as_configured(family):
    settings = InstructionConfig(few_shot=0.25, options=0.75, rationale=0.5, inverted=0.1)
    counts = collections.Counter()
    for epoch in range(10):
        for example in make(Instruct(family, exemplars=lambda: ITEMS), settings=settings, epoch=epoch):
            words = example['variant'].split(', ')
            assert words[0] in ('few-shot', 'zero-shot') and set(words[1:]) <= {'options', 'rationale', 'inverted'}
            counts.update(words)
    total = 10 * len(ITEMS)
    straight = total - counts['inverted']
    for count, share, of in ((counts['few-shot'], 0.25, total), (counts['inverted'], 0.1, total),
                             (counts['options'], 0.75, straight), (counts['rationale'], 0.5, straight)):  # fmt: skip
        assert abs(count - share * of) < 4 * np.sqrt(share * (1 - share) * of), counts


def test_answers_follow_the_options_as_listed(family):
    settings = InstructionConfig(few_shot=0, options=1, rationale=0, inverted=0)
    orders = set()
    for example, item in zip(make(Instruct(family, shuffle_options=True), settings=settings), ITEMS):
        text = text_of(example)
        if '(A)' in text:
            assert example['targets'] in ('(A)', '(B)', '(C)')
            orders.add(example['targets'])
            assert f'{example["targets"]} {item["answer"]}' in text
        else:
            assert example['targets'] == item['answer'] and f'[{item["answer"]}]' in text
        assert example['variant'] == 'zero-shot, options'
    assert orders == {'(A)', '(B)', '(C)'}
    fixed = make(Instruct(family), settings=settings)
    assert {example['targets'] for example in fixed if '(A)' in text_of(example)} == {'(B)'}


def test_a_trigger_asks_for_the_rationale_of_the_target(family):
    settings = InstructionConfig(few_shot=1, options=0, rationale=1, inverted=0, triggers=('Why?', 'Step by step.'))
    used = set()
    for example, item in zip(make(Instruct(family, exemplars=lambda: ITEMS), settings=settings), ITEMS):
        assert example['targets'] == f'{item["rationale"]}. So the answer is {item["answer"]}.'
        (trigger,) = [trigger for trigger in settings.triggers if trigger in text_of(example)]
        used.add(trigger)
        assert text_of(example).count(trigger) == example['exemplars'] + 1, 'exemplars are worded like the question'
        assert text_of(example).count('So the answer is') == example['exemplars']
    assert used == set(settings.triggers)
    other = Instruct(family, triggers=('Pourquoi ?',), rationale='{rationale} La réponse est {answer}.')
    example = make(other, settings=settings)[3]
    assert 'Pourquoi ?' in text_of(example) and example['targets'] == '1003 and 2 more. La réponse est 1005.'


def test_evaluation_finds_the_answer_after_a_rationale():
    assert extract_answer(instructions.RATIONALE.format(rationale='7 and 5 are 12.', answer='(B)')) == '(B)'


def test_prompts_are_inverted_in_training_only(family):
    settings = InstructionConfig(few_shot=0.5, inverted=1)
    for example, item in zip(make(Instruct(family, exemplars=lambda: ITEMS), settings=settings), ITEMS):
        assert example['targets'] == item['sum'] == example['answer']
        assert f'Which sum gives {item["answer"]}?' in text_of(example)
        assert example['variant'].endswith('-shot, inverted')
    validation = make(Instruct(family), settings=settings, split='validation')
    assert not any('inverted' in example['variant'] for example in validation)


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_an_example_is_never_its_own_exemplar(family, split):
    twice = [*ITEMS[:3], {**ITEMS[1], 'answer': 'another'}, *ITEMS[:3]]
    settings = InstructionConfig(few_shot=1, max_exemplars=5, inverted=0)
    for epoch in range(20):
        made = make(Instruct(family, exemplars=lambda: twice), items=twice, settings=settings, split=split, epoch=epoch)
        for example, item in zip(made, twice):
            assert text_of(example).count(item['sum']) == 1, text_of(example)
            assert 1 <= example['exemplars'] <= 5


def test_exemplars_are_solved_and_their_number_varies(family):
    settings = InstructionConfig(few_shot=1, max_exemplars=3, options=0, rationale=0, inverted=0)
    made = make(Instruct(family, exemplars=lambda: ITEMS), settings=settings)
    answers = {item['sum']: item['answer'] for item in ITEMS}
    for example in made:
        solved = [line for line in text_of(example).replace('\nA: ', ' -> ').split('\n') if ' -> ' in line]
        for line in solved:
            question, _, answer = line.partition(' -> ')
            (asked,) = [sum for sum in answers if f'What is {sum}?' in question or f'<{sum}>' in question]
            assert answer == answers[asked]
        assert text_of(example).count('Add up.') <= 1, 'a head is written once'
    assert collections.Counter(example['exemplars'] for example in made).keys() == {1, 2, 3}


def test_exemplars_come_from_the_training_split(family):
    training = [{'sum': f'train {i}', 'answer': f'<{i}>'} for i in range(50)]
    settings = InstructionConfig(few_shot=1, options=0, rationale=0, inverted=0)
    for example in make(Instruct(family, exemplars=lambda: training), settings=settings, split='validation'):
        assert text_of(example).count('train ') == example['exemplars'] > 0


@pytest.mark.parametrize('length', [4, 40, 64, 100, 180])
def test_whole_exemplars_are_dropped_and_never_the_question(family, length):
    settings = InstructionConfig(few_shot=1, options=0.5, inverted=0)
    long = [{**item, 'sum': item['sum'] + ' + 0' * (i % 12)} for i, item in enumerate(ITEMS)]
    preprocessor = Instruct(family, exemplars=lambda: long)
    short, whole = (make(preprocessor, long, settings, length=limit) for limit in (length, 10_000))
    for example, full, item in zip(short, whole, long):
        assert example['targets'] == full['targets'], 'the question does not depend on what fits'
        assert text_of(example).count(item['sum']) == 1
        assert len(example['inputs']) + 1 <= length or not example['exemplars']
        assert example['exemplars'] <= full['exemplars']
        if example['exemplars']:
            assert text_of(full).endswith(text_of(example)[text_of(example).rindex(item['sum']) :])
        if len(full['inputs']) + 1 <= length * 0.8:
            assert example['exemplars'] == full['exemplars'], 'nothing is dropped without need'
        assert (example['exemplars'] > 0) == example['variant'].startswith('few-shot')
    if length >= 64:
        assert any(0 < example['exemplars'] < full['exemplars'] for example, full in zip(short, whole))


def test_a_long_passage_loses_its_middle_and_the_question_stays(tmp_path):
    path = tmp_path / 'reading.json'
    path.write_text(json.dumps({
        **FAMILY, 'fields': ['passage', 'question'], 'inverted': [],
        'templates': ['{passage}\n\n{question}', '{question} See: {passage} Now reply.'],
    }), 'utf-8')  # fmt: skip
    numbers = [' '.join(f'w{i}' for i in range(n)) for n in (10, 100, 400)]
    items = [{'passage': text, 'question': 'Which word is the first?', 'answer': 'w0'} for text in numbers]
    settings = InstructionConfig(few_shot=1, inverted=0)
    preprocessor = Instruct(load_templates(path), exemplars=lambda: items)
    for epoch in range(8):
        for example, item in zip(make(preprocessor, items, settings, length=300, epoch=epoch), items):
            text = text_of(example)
            assert len(example['inputs']) + 1 <= 300 and item['question'] in text
            assert example['shortened'] == (len(item['passage']) > 270)
            if example['shortened']:
                assert 'w0 w1 w2' in text and item['passage'][-20:] in text and instructions.GAP in text
                assert len(example['inputs']) > 280, 'no more is removed than needed'
                assert fit_example({**example, 'targets': []}, {'inputs': 300, 'targets': 5})[1], 'it counts as cut'
    (tiny,) = make(preprocessor, items[2:], settings, length=60)
    assert len(tiny['inputs']) > 60 and not tiny['shortened'], 'too short for any passage: the pipeline trims the end'


def test_an_example_depends_on_its_key_only(family):
    preprocessor = Instruct(family, exemplars=lambda: ITEMS)
    first = make(preprocessor, length=120)
    alone = [make(Instruct(family, exemplars=lambda: ITEMS), ITEMS, length=120)[i] for i in (7, 3)]
    for a, b in zip((first[7], first[3]), alone):
        assert a['inputs'].tolist() == b['inputs'].tolist() and a['targets'] == b['targets']
    blocks = make(preprocessor, ITEMS[:50], length=120)
    assert [text_of(a) for a in blocks] == [text_of(a) for a in first[:50]]
    assert [text_of(a) for a in make(preprocessor, length=120, epoch=1)] != [text_of(a) for a in first]


def test_inputs_are_the_tokens_that_tokenize_would_make(family):
    context = Context(VOCABULARY, {'inputs': 200}, task='sums', instructions=InstructionConfig())
    functions = [Instruct(family, exemplars=lambda: ITEMS), tokenize, append_eos]
    ((example,),) = run_block(functions, [ITEMS[5]], [context])
    assert example['inputs'].tolist() == [*VOCABULARY.encode(example['inputs_pretokenized']), 1]
    assert example['targets'].tolist() == [*VOCABULARY.encode(example['targets_pretokenized']), 1]
    assert isinstance(make(functions[0], vocabulary=None, length=0)[0]['inputs'], str)


def test_records_without_an_item_are_dropped(family):
    to_item = lambda record: record if int(record['answer']) % 2 == 0 else None
    even = Instruct(family, to_item, exemplars=lambda: ITEMS)
    made = make(even, settings=InstructionConfig(few_shot=1, options=0, rationale=0, inverted=0))
    assert [example is None for example in made] == [int(item['answer']) % 2 == 1 for item in ITEMS]
    assert make(Instruct(family, to_item=lambda record: None), ITEMS[:1]) == [None]


def test_without_exemplars_prompts_are_zero_shot(family):
    settings = InstructionConfig(few_shot=1, inverted=0)
    for exemplars in (None, list, lambda: [ITEMS[0]]):
        example = make(Instruct(family, exemplars=exemplars), ITEMS[:1], settings)[0]
        assert example['exemplars'] == 0 and example['variant'].startswith('zero-shot')
        assert not text_of(example).startswith('Look')


def test_exemplars_are_tokenized_once(family):
    class Counting(ByteVocabulary):
        encoded = 0

        def encode(self, text):
            Counting.encoded += 1
            return super().encode(text)

    preprocessor, vocabulary = Instruct(family, exemplars=lambda: ITEMS), Counting()
    for epoch in range(5):
        make(preprocessor, vocabulary=vocabulary, epoch=epoch, settings=InstructionConfig(few_shot=1))
    assert Counting.encoded <= instructions.POOL


@pytest.mark.parametrize('item, words', [
    ({'answer': '3'}, "task sums: the family 'sums' needs the field 'sum' as text"),
    ({'sum': '1 + 2', 'answer': 3}, "needs the field 'answer' as text, the item has sum='1 + 2', answer='3'"),
])  # fmt: skip
def test_an_item_without_its_fields_is_named(family, item, words):
    with pytest.raises(UserError) as error:
        make(Instruct(family), [item])
    assert words in str(error.value) and '\n' not in str(error.value)


def test_wordings_that_all_need_options_and_an_item_without(tmp_path):
    path = tmp_path / 'sums.json'
    path.write_text(json.dumps({**FAMILY, 'templates': [{'inputs': 'Which is {sum}?', 'options': True}]}), 'utf-8')
    preprocessor = Instruct(load_templates(path))
    with pytest.raises(UserError, match="every wording of the family 'sums' lists options"):
        make(preprocessor, [{'sum': '1 + 1', 'answer': '2'}], PLAIN)
    made = make(preprocessor, ITEMS[:1], PLAIN)
    assert made[0]['variant'] == 'zero-shot, options', 'a wording that needs options lists them'


def test_as_a_seqio_preprocessor(family):
    tf = pytest.importorskip('tensorflow')
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([{'sum': item['sum'], 'answer': item['answer']} for item in ITEMS[:4]]),
        output_signature={name: tf.TensorSpec([], tf.string) for name in ('sum', 'answer')},
    )
    made = list(Instruct(family, exemplars=lambda: ITEMS)(dataset, {'inputs': 100, 'targets': 10}).as_numpy_iterator())
    assert [example['answer'].decode() in ('', item['answer'], item['sum']) for example, item in zip(made, ITEMS)] == [
        True
    ] * 4


def test_exemplars_stay_in_memory_up_to_a_limit(monkeypatch):
    read = []
    for kept, again in ((10_000, 0), (25, 3)):
        monkeypatch.setattr(instructions, 'KEPT', kept)
        pool = instructions.Exemplars(
            lambda: ITEMS[:5], lambda record: read.append(1) or {'sum': 'ten chars.', 'answer': ''}
        )
        first = [pool.item(i) for i in range(5)]
        read.clear()
        assert [pool.item(i) for i in range(5)] == first and len(read) == again
