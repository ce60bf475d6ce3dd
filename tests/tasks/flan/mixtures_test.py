"""tasks/flan/mixtures.py and its table: every schema by TFDS's mocks, rates as published, and what is said of what is not there."""

import collections
import contextlib
import itertools
import json
import re
import shutil

import numpy as np
import pytest

from t5flan.data import skipped as broken
from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.config import FORMATS, DataConfig, InstructionConfig
from t5flan.data.mixtures.mixing import caps, tasks_and_rates
from t5flan.data.mixtures.readers import open_reader
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import families
from t5flan.tasks.families import family
from t5flan.tasks.flan import mixtures as flan
from t5flan.tasks.flan.table import TABLE, items, load_table, wordings_of
from tests.vocabulary import vocabulary_chosen

seqio = pytest.importorskip('seqio')
tfds = pytest.importorskip('tensorflow_datasets')

TABLE_ROWS = {row.name: row for row in load_table().datasets}
VOCABULARY = ByteVocabulary()

# Rows whose records say something in their text, which a mock's random letters do not: one record by hand for each, and
# the item that it must become.
BY_HAND = {
    'sentiment140': ({'polarity': 4, 'text': 'What a day!'}, {'text': 'What a day!', 'answer': 'positive'}),
    'unified_qa_science': (
        {'input': 'What shines? \\n (A) the Sun (B) a stone', 'output': 'the Sun'},
        {'question': 'What shines?', 'answer': 'the Sun', 'options': ['the Sun', 'a stone']},
    ),
    'true_case': ({'en': 'Paris is big.', 'da': ''}, {'text': 'paris is big.', 'answer': 'Paris is big.'}),
    'qasc': (
        {'question': 'What is hot?', 'choices': {'text': ['ice', 'fire'], 'label': ['A', 'B']}, 'answerKey': 'B', 'combinedfact': 'Fire is hot.'},
        {'question': 'What is hot?', 'answer': 'fire', 'options': ['ice', 'fire'], 'rationale': 'Fire is hot.'},
    ),
    'quoref': ({'input': 'Who came? \\n Ann came.', 'output': 'Ann'}, {'passage': 'Ann came.', 'question': 'Who came?', 'answer': 'Ann'}),
    'ropes': ({'input': 'Which? \\n A and B.', 'output': 'A'}, {'passage': 'A and B.', 'question': 'Which?', 'answer': 'A'}),
    'social_iqa': (
        {'input': 'Why? \\n (a) to eat (b) to run (c) to sit \\n Jo went out.', 'output': 'to run'},
        {'passage': 'Jo went out.', 'question': 'Why?', 'answer': 'to run', 'options': ['to eat', 'to run', 'to sit']},
    ),
    'race_high': (
        {'article': 'Text.', 'questions': ['One?', 'Two?'], 'options': [['a', 'b'], ['c', 'd']], 'answers': ['B', 'A']},
        {'passage': 'Text.', 'question': 'One?', 'answer': 'b', 'options': ['a', 'b']},
    ),
    'race_middle': (
        {'article': 'Text.', 'questions': ['One?'], 'options': [['a', 'b', 'c']], 'answers': ['C']},
        {'passage': 'Text.', 'question': 'One?', 'answer': 'c', 'options': ['a', 'b', 'c']},
    ),
}  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def registered():
    flan.register()


@contextlib.contextmanager
def mocks(count=24):
    with tfds.testing.mock_data(num_examples=count):
        yield


def config_for(task, **settings):
    return DataConfig(task, 8, {'inputs': 400, 'targets': 200}, 'bytes', **settings)


def read(task, count=12, split='train', **settings):
    """Examples of a task as training reads them."""
    reader = open_reader(
        seqio.TaskRegistry.get(task), config_for(task, split=split, **settings), VOCABULARY, 0, 1, epochs=1
    )
    made = []
    while len(made) < count and (ready := reader.peek()) is not None:
        made.append(ready.example)
        reader.pop()
    return made


def test_the_table_holds_the_collection():
    table = load_table()
    counts = collections.Counter(row.submixture for row in table.datasets)
    assert counts['flan2021'] >= 60 and counts['t0_sf'] >= 9 and counts['dialog'] >= 1
    assert len({row.tfds for row in table.datasets}) >= 70
    used = {row.family for row in table.datasets}
    assert len(used) >= 18 and all(family(name).templates for name in used)
    assert all(row.reason for row in table.left_out)


@pytest.mark.parametrize('name', TABLE_ROWS)
def test_the_schema_is_that_of_tfds(name):
    """The real loading code (SeqIO, TFDS's features, our mapping) over mocked records of the version that the row names."""
    row = TABLE_ROWS[name]
    with mocks(40 if name in ('hellaswag', 'story_cloze') else 12):
        made = flan.read_items(row, seqio.TaskRegistry.get(row.task).source)
    fields = {*row.fields, 'answer', *(['rationale'] if row.rationale else [])}
    for item in made:
        assert item.keys() == fields | ({'options'} if row.of else set()) and all(
            isinstance(item[field], str) for field in fields
        )
        assert not item.get('options') or item['answer'] in item['options']
    assert made or name in BY_HAND, 'no mocked record makes an item'


@pytest.mark.parametrize('name', BY_HAND)
def test_records_by_hand(name):
    record, expected = BY_HAND[name]
    item = next(items(TABLE_ROWS[name], record))
    assert expected.items() <= item.items()


MEANT = {
    'yes': 'entailment e equivalent duplicate paraphrase acceptable True',
    'no': 'contradiction c not_entailment not_equivalent not_duplicate different_meaning unacceptable False',
    'it is not possible to tell': 'neutral n',
    'positive': 'pos positive', 'negative': 'neg negative', 'world': 'World', 'sports': 'Sports', 'business': 'Business',
    'science and technology': 'Sci/Tech', 'description': 'DESC', 'entity': 'ENTY', 'abbreviation': 'ABBR', 'human being': 'HUM',
    'number': 'NUM', 'location': 'LOC',
}  # fmt: skip


def test_labels_have_the_order_of_tfds():
    """Where TFDS names its labels, our words for them mean the same; "1" and "2" say nothing."""
    checked = 0
    with mocks(1):
        for row in load_table().datasets:
            if not row.label or not row.fixed_options or isinstance(row.of, dict):
                continue
            feature = tfds.builder(row.tfds).info.features[row.label]
            names = getattr(feature, 'names', None)
            if names and not names[0].isdigit():
                assert [name in MEANT[text].split() for name, text in zip(names, row.of, strict=True)] == [True] * len(
                    names
                ), row
                checked += 1
    assert checked >= 18


def test_labels_are_the_answers_they_stand_for():
    rows = {
        'anli_r1': ({'context': 'a', 'hypothesis': 'b', 'label': 2}, 'no'),
        'rte': ({'premise': 'a', 'hypothesis': 'b', 'label': 1}, 'no'),
        'cb': ({'premise': 'a', 'hypothesis': 'b', 'label': 1}, 'no'),
        'wnli': ({'sentence1': 'a', 'sentence2': 'b', 'label': 1}, 'yes'),
        'mnli': ({'premise': 'a', 'hypothesis': 'b', 'label': 1}, 'it is not possible to tell'),
        'imdb_reviews': ({'text': 'a<br />b', 'label': 1}, 'positive'),
        'bool_q': ({'passage': 'a', 'question': 'b', 'title': 'c', 'answer': True}, 'yes'),
        'stsb': ({'sentence1': 'a', 'sentence2': 'b', 'label': 2.57}, '2.6'),
        'story_cloze': ({'context': 'a', 'endings': ['b', 'c'], 'label': 2}, 'c'),
        'hellaswag': ({'context': 'a', 'endings': ['b', 'c'], 'label': 1}, 'c'),
        'winogrande': ({'sentence': 'a _', 'option1': 'b', 'option2': 'c', 'label': 1}, 'c'),
        'copa': ({'premise': 'a', 'question': 'cause', 'choice1': 'b', 'choice2': 'c', 'label': 0}, 'b'),
        'lambada': ({'passage': 'the cat sat on the mat '}, 'mat'),
        'squad_v2': ({'context': 'a', 'question': 'b', 'title': 'c', 'answers': {'text': []}}, 'unanswerable'),
        'trec': ({'text': 'Who?', 'label-coarse': 3}, 'human being'),
    }  # fmt: skip
    for name, (record, answer) in rows.items():
        (item,) = items(TABLE_ROWS[name], record)
        assert item['answer'] == answer, name
    (item,) = items(TABLE_ROWS['imdb_reviews'], rows['imdb_reviews'][0])
    assert item['text'] == 'a b'
    (item,) = items(TABLE_ROWS['copa'], rows['copa'][0])
    assert 'cause' in item['question']
    assert len(list(items(TABLE_ROWS['race_high'], BY_HAND['race_high'][0]))) == 2
    assert not list(items(TABLE_ROWS['snli'], {'premise': 'a', 'hypothesis': 'b', 'label': -1})), 'SNLI: no majority'
    assert not list(items(TABLE_ROWS['web_questions'], {'question': 'a', 'answers': []}))


def test_marks_of_the_sources_are_taken_out():
    rows = {
        'hellaswag': ({'context': '[header] How to run [title] Start.', 'endings': ['[step] Go.', 'Sit.'], 'label': 0}, 'context', 'How to run Start.'),
        'dart': ({'tripleset': ['[TABLECONTEXT] [TITLE] List', 'Mars_Hill | JOINED | 1973'], 'target': 'x'}, 'data', 'List; Mars Hill, JOINED, 1973'),
        'web_nlg_en': ({'input': ['Aarhus_Airport | city | Aarhus'], 'target': 'x'}, 'data', 'Aarhus Airport, city, Aarhus'),
        'common_gen': ({'concepts': ['dog', 'run'], 'target': 'x'}, 'data', 'dog, run'),
        'opinion_abstracts_rotten_tomatoes': (
            {'_critics': {'key': list('abcdefghijkl'), 'value': list('abcdefghijkl')}, '_movie_name': 'the_film', '_critic_consensus': 'x'},
            'kind', 'list of reviews of the film the film'),
        'multi_news': ({'document': 'One. ||||| Two.', 'summary': 'x'}, 'document', 'One. \n Two.'),
        'samsum': ({'dialogue': 'A: Hi\r\nB: Hi', 'summary': 'x'}, 'document', 'A: Hi\nB: Hi'),
        'multirc': ({'paragraph': '<b>Sent 1: </b>Hi.<br>', 'question': 'q', 'answer': 'a', 'label': 0}, 'passage', 'Sent 1: Hi.'),
        'record': ({'passage': 'One.\n@highlight\nTwo.', 'query': 'q', 'entities': ['A', 'A'], 'answers': ['A']}, 'passage', 'One.\nTwo.'),
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
    (item,) = items(
        TABLE_ROWS['coqa'], {'story': 's', 'questions': ['Who?', 'Why?'], 'answers': {'input_text': ['Jo', 'So']}}
    )
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
        assert (
            (item['source_language'] == 'German')
            == item['text'].startswith('Satz')
            == item['answer'].startswith('Sentence')
        )
    assert 60 < sum(item['source_language'] == 'German' for item in made) < 140


@pytest.mark.parametrize(
    'name', ['anli_r1', 'openbookqa', 'squad_v1', 'wmt16_deen', 'e2e_nlg', 'cos_e', 'ag_news_subset']
)
def test_a_row_trains(name):
    """From TFDS to token ids, as a run reads it; exemplars are of the training split."""
    row = TABLE_ROWS[name]
    with mocks():
        made = read(row.task, instructions=InstructionConfig(few_shot=0.5, inverted=0.2))
        held_out = read(row.task, 4, 'validation')
    assert len(made) == 12 and held_out
    for example in (*made, *held_out):
        assert (
            example['inputs'].dtype == np.int32 and example['inputs'][-1] == example['targets'][-1] == VOCABULARY.eos_id
        )
        assert len(example['inputs']) <= 400
        assert not set('{}') & set(example['inputs_pretokenized'] + example['targets_pretokenized'])
    assert {'few-shot', 'zero-shot'} == {example['variant'].split(',')[0] for example in made}
    assert not any('inverted' in example['variant'] for example in held_out)


@pytest.mark.parametrize('format', FORMATS)
def test_a_batch_of_any_format(format):
    """Few-shot prompts train a decoder-only model too: the loss is on the targets, the exemplars' answers carry none."""
    settings = config_for(
        'flan2021_anli_r1', format=format, pack=False, streams=1, prefetch=0, instructions=InstructionConfig(few_shot=1)
    )
    with mocks(), TrainPipeline(settings, VOCABULARY) as pipeline:
        batch = next(pipeline)[0]
        examples = read('flan2021_anli_r1', 24, instructions=settings.instructions)
    inputs = 0 if format == 'encoder_decoder' else 1
    found = set()
    for tokens, weights in zip(batch['decoder_target_tokens'], batch['decoder_loss_weights'], strict=True):
        found.add(
            (
                VOCABULARY.decode(tokens[weights > 0]),
                VOCABULARY.decode(tokens[: np.argmax(weights > 0)]) if inputs else '',
            )
        )
    assert found <= {(example['targets_pretokenized'], example['inputs_pretokenized'] * inputs) for example in examples}
    assert len(found) > 1 and all('few-shot' in example['variant'] for example in examples)


@pytest.mark.parametrize('name', ['cos_e', 'snli', 'wmt16_roen'])
def test_a_row_is_a_seqio_task(name):
    """SeqIO's own way of reading a task gives token ids of the same kind."""
    with mocks(6), vocabulary_chosen(VOCABULARY):
        dataset = seqio.get_mixture_or_task(TABLE_ROWS[name].task).get_dataset(
            {'inputs': 400, 'targets': 200}, 'train', shuffle=False
        )
        made = list(dataset.as_numpy_iterator())
    assert len(made) == 6 and all(example['inputs'][-1] == example['targets'][-1] == 1 for example in made)
    assert all(example['variant'] and example['inputs_pretokenized'] for example in made)


def test_a_label_set_is_listed_in_any_order():
    settings = InstructionConfig(few_shot=0, options=1, inverted=0)
    with mocks(60):
        made = read('flan2021_cola', 60, instructions=settings)
    assert {example['targets_pretokenized'] for example in made if '(A)' in example['inputs_pretokenized']} >= {
        '(A)',
        '(B)',
    }
    letters = [(example['inputs_pretokenized'].index(' no'), example['inputs_pretokenized'].index(' yes'))
               for example in made if '(A) ' in example['inputs_pretokenized']]  # fmt: skip
    assert {no < yes for no, yes in letters} == {True, False}


def test_rates_are_proportional_to_examples_up_to_the_cap():
    rates = {task.name: rate for task, rate in tasks_and_rates(seqio.MixtureRegistry.get('flan2021'))}
    assert rates['flan2021_cola'] / rates['flan2021_copa'] == pytest.approx(8351 / 350)
    assert rates['flan2021_cola'] / rates['flan2021_wmt14_enfr'] == pytest.approx(8351 / 30_000)
    assert rates['flan2021_wmt14_enfr'] == rates['flan2021_squad_v1']
    assert set(caps(seqio.MixtureRegistry.get('flan2021')).values()) == {30_000}
    assert set(caps(seqio.MixtureRegistry.get('t0_sf')).values()) == {20_000}


@pytest.fixture
def no_files():
    """Without the mixtures of a user's files that another test has registered."""
    others = {name: seqio.MixtureRegistry.get(name) for name in ('natural_instructions', 'cot')
              if name in seqio.MixtureRegistry.names()}  # fmt: skip
    for name in others:
        seqio.MixtureRegistry.remove(name)
    yield
    for name, mixture in others.items():
        seqio.MixtureRegistry.add_provider(name, mixture)
    flan.register()


@pytest.fixture
def files_given():
    """Stand-ins for the mixtures that other modules register where the user has the files."""
    added = [name for name in ('natural_instructions', 'cot') if name not in seqio.MixtureRegistry.names()]
    for name in added:
        seqio.MixtureRegistry.add(name, [('practice_add' if name == 'cot' else 'practice_subtract', 1.0)])
    yield
    for name in added:
        seqio.MixtureRegistry.remove(name)
    flan.register()


@pytest.mark.parametrize('mixture, shares', [
    ('flan2022', {'flan2021': 0.40, 't0_sf': 0.32, 'niv2': 0.20, 'cot': 0.05, 'dialog': 0.03}),
    ('flan2022_paper', {'flan2021 dialog': 0.52, 't0_sf': 0.15, 'niv2': 0.30, 'cot': 0.03}),
])  # fmt: skip
def test_shares_are_the_published_ones(mixture, shares, no_files, request):
    from t5flan.tasks.practice import tasks as practice

    practice.register()
    flan.register()
    assert load_table().mixtures[mixture] == {
        name.replace('flan2021 dialog', 'muffin'): share for name, share in shares.items()
    }
    there = {part: share for part, share in shares.items() if part not in ('niv2', 'cot')}
    assert by_part(mixture) == pytest.approx({part: share / sum(there.values()) for part, share in there.items()})
    said = broken.notes(mixture)
    assert any(line.startswith('niv2') and 'NATURAL_INSTRUCTIONS_DIR' in line for line in said)
    assert any(line.startswith('cot (') and 'DataConfig.cot' in line for line in said)
    assert any('t0_sf_quail, ' in line and 'huggingface' in line for line in said)
    request.getfixturevalue('files_given')
    flan.register()
    assert by_part(mixture) == pytest.approx(shares)
    assert not any(line.startswith(('niv2', 'cot')) for line in broken.notes(mixture))


def by_part(mixture):
    """Share of each submixture, by the beginning of its tasks' names."""
    found = collections.Counter()
    for task, rate in tasks_and_rates(seqio.MixtureRegistry.get(mixture)):
        part = {'practice_add': 'cot', 'practice_subtract': 'niv2'}.get(task.name)
        part = part or next(name for name in ('flan2021', 't0_sf', 'dialog') if task.name.startswith(f'{name}_'))
        found[part if mixture == 'flan2022' or part not in ('flan2021', 'dialog') else 'flan2021 dialog'] += rate
    return dict(found)


def test_counts_need_no_reading():
    source = seqio.TaskRegistry.get('flan2021_wmt14_enfr').source
    assert source.num_input_examples('train') == 40_836_715 and source.num_input_examples('validation') is None


@pytest.fixture
def data_dir(tmp_path):
    seqio.set_tfds_data_dir_override(str(tmp_path))
    yield tmp_path
    seqio.set_tfds_data_dir_override(None)


def test_a_data_set_that_is_not_prepared_is_one_line(data_dir):
    with pytest.raises(UserError) as error:
        read('t0_sf_qasc')
    assert (
        'task t0_sf_qasc' in str(error.value) and 'tfds build qasc' in str(error.value) and '\n' not in str(error.value)
    )


def test_a_prepared_data_set_is_read_with_its_slices_by_several_streams(data_dir, monkeypatch):
    """TFDS writes its files, of records that are made here instead of downloaded; the rest is as for a user."""
    builder = tfds.builder_cls('web_questions')
    made = ((i, {'url': '', 'question': f'question {i}?', 'answers': [f'answer {i}']}) for i in range(260))
    monkeypatch.setattr(builder, '_split_generators', lambda self, download: {'train': made})
    tfds.builder('web_questions', data_dir=data_dir).download_and_prepare()
    seen = {'train': set(), 'validation': set()}
    for split, stream in itertools.product(seen, range(2)):
        settings = config_for('t0_sf_web_questions', split=split, instructions=InstructionConfig(inverted=0))
        reader = open_reader(seqio.TaskRegistry.get('t0_sf_web_questions'), settings, VOCABULARY, stream, 2, epochs=1)
        while (ready := reader.peek()) is not None:
            text, answer = ready.example['inputs_pretokenized'], ready.example['answer']
            assert answer not in seen[split] and text.count(answer.replace('answer', 'question') + '?') == 1
            seen[split].add(answer)
            if split == 'validation':
                assert not seen[split] & set(re.findall(r'answer \d+', text)), 'exemplars are of the training split'
            reader.pop()
    assert (len(seen['train']), len(seen['validation'])) == (60, 200) and not seen['train'] & seen['validation']


# -- A faulty table -------------------------------------------------------------------------------------------------------


def faulty(tmp_path, change):
    content = json.loads(TABLE.read_text('utf-8'))
    change(content)
    path = tmp_path / 'table.json'
    path.write_text(json.dumps(content), 'utf-8')
    with pytest.raises(UserError) as error:
        for row in load_table(path).datasets:
            wordings_of(row)
    assert (str(path) in str(error.value) or TABLE.name in str(error.value)) and '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('change, words', [
    (lambda t: t['datasets'][0].update(family='nle'), "no family of wordings 'nle'"),
    (lambda t: t['datasets'][0].update(cap=0), 'datasets[0] (anli_r1): cap is 0, it must be a whole number, 1 or more'),
    (lambda t: t['datasets'][0].update(rate=0), 'datasets[0] (anli_r1): rate is 0, it must be above 0'),
    (lambda t: t['datasets'][0].update(train_examples=0), 'train_examples is 0'),
    (lambda t: t['datasets'][0].update(submixture='flan'), "submixture 'flan' is none of flan2021"),
    (lambda t: t['datasets'][0].update(splits='oficial'), "splits 'oficial' is none of official"),
    (lambda t: t['datasets'][0].update(splits={'test': 'test'}), 'splits has no "train"'),
    (lambda t: t['datasets'][0].update(make=['lettred']), "make names 'lettred'"),
    (lambda t: t['datasets'][0].update(name='anli_r2'), "2 data sets are named 'anli_r2'"),
    (lambda t: t['datasets'][0].update(answer='{x}'), 'needs either "answer", or "label" and "of"'),
    (lambda t: t['datasets'][0].pop('tfds'), "datasets[0] (anli_r1) has no 'tfds'"),
    (lambda t: t['datasets'][0].update(fild=1), "has the key 'fild'"),
    (lambda t: t['datasets'][0]['fields'].pop('premise'), "fields has no 'premise', which the family 'nli' needs"),
    (lambda t: t['datasets'][0]['fields'].update(text=''), "fields has 'text'; the family 'nli' has premise, hypothesis"),
    (lambda t: t['submixtures']['flan2021'].update(cap=0), 'submixtures.flan2021.cap is 0'),
    (lambda t: t['mixtures']['flan2022'].update(niv3=0.1), "mixtures.flan2022 has a rate for 'niv3', which is no submixture"),
    (lambda t: t.pop('splits'), "has no 'splits'"),
])  # fmt: skip
def test_a_faulty_table_is_named_in_one_line(tmp_path, change, words):
    assert words in faulty(tmp_path, change)


def test_faulty_wordings_stop_or_leave_their_tasks_out(tmp_path, monkeypatch):
    shutil.copytree(families.TEMPLATES, tmp_path / 'templates')
    nli = json.loads((tmp_path / 'templates' / 'nli.json').read_text('utf-8'))
    (tmp_path / 'templates' / 'nli.json').write_text(
        json.dumps({**nli, 'templates': ['{premise} {hypotesis}']}), 'utf-8'
    )
    monkeypatch.setattr(families, 'TEMPLATES', tmp_path / 'templates')
    monkeypatch.setattr(broken, '_left_out', {})
    family.cache_clear()
    names = [row.task for row in load_table().datasets if row.family == 'nli']
    before = {name: seqio.TaskRegistry.get(name) for name in names}
    for name in names:
        seqio.TaskRegistry.remove(name)
    seqio.MixtureRegistry.remove('flan2021')
    try:
        with pytest.raises(
            UserError, match=r'nli.json: templates\[0\].inputs names {hypotesis}, a field that is not there'
        ):
            flan.register()
        flan.register(skip_broken=True)
        assert set(broken.left_out()) == set(names) and 'hypotesis' in broken.left_out()['flan2021_snli']
        rates = tasks_and_rates(seqio.MixtureRegistry.get('flan2021'))
        assert len(rates) == len([row for row in load_table().datasets if row.submixture == 'flan2021']) - len(names)
    finally:
        monkeypatch.undo()
        family.cache_clear()
        for name in names:
            seqio.TaskRegistry.add_provider(name, before[name])
        seqio.MixtureRegistry.remove('flan2021')
        flan.register()


def test_a_record_without_a_field_is_named():
    with pytest.raises(UserError, match=r"datasets.json: anli_r1: 'context' is not in its records; they have premise"):
        list(items(TABLE_ROWS['anli_r1'], {'premise': 'a', 'hypothesis': 'b', 'label': 0}))
