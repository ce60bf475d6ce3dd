"""tasks/flan/table.py: the table fits TFDS's schemas and labels, and one clear line for a faulty table."""

import collections
import json

import pytest

from t5flan.errors import UserError
from t5flan.tasks.families import family
from t5flan.tasks.flan import mixtures as flan
from t5flan.tasks.flan.sources import read_items
from t5flan.tasks.flan.table import TABLE, items, load_table, wordings_of
from tests.tasks.flan.table_rows import BY_HAND, TABLE_ROWS, TFDS_ROWS, mocks

seqio = pytest.importorskip('seqio')
tfds = pytest.importorskip('tensorflow_datasets')


@pytest.fixture(scope='module', autouse=True)
def registered():
    flan.register()


def test_the_table_holds_the_collection():
    table = load_table()
    counts = collections.Counter(row.submixture for row in table.datasets)
    assert counts['flan2021'] >= 60 and counts['t0_sf'] >= 45 and counts['dialog'] == 3
    assert len({row.tfds for row in table.datasets}) >= 70
    used = {row.family for row in table.datasets}
    assert len(used) >= 18 and all(family(name).templates for name in used)
    assert all(row.reason for row in table.left_out)


@pytest.mark.parametrize('name', TFDS_ROWS)
def test_rows_fit_the_schema_of_tfds(name):
    """The real loading code (SeqIO, TFDS's features, our mapping) on mocked records of the version in the row."""
    row = TABLE_ROWS[name]
    with mocks(40 if name in ('hellaswag', 'story_cloze') else 12):
        made = read_items(row, seqio.TaskRegistry.get(row.task).source)
    fields = {*row.fields, 'answer', *(['rationale'] if row.rationale else [])}
    for item in made:
        assert item.keys() == fields | ({'options'} if row.of else set())
        assert all(isinstance(item[field], str) for field in fields)
        assert not item.get('options') or item['answer'] in item['options']
    assert made or name in BY_HAND, 'no mocked record makes an item'


MEANT = {
    'yes': 'entailment e equivalent duplicate paraphrase acceptable True',
    'no': 'contradiction c not_entailment not_equivalent not_duplicate different_meaning unacceptable False',
    'it is not possible to tell': 'neutral n',
    'positive': 'pos positive', 'negative': 'neg negative', 'world': 'World', 'sports': 'Sports',
    'business': 'Business', 'science and technology': 'Sci/Tech', 'description': 'DESC', 'entity': 'ENTY',
    'abbreviation': 'ABBR', 'human being': 'HUM', 'number': 'NUM', 'location': 'LOC',
}  # fmt: skip


def test_labels_have_the_order_of_tfds():
    """Where TFDS names its labels (other than "1", "2"), our words for them mean the same."""
    checked = 0
    with mocks(1):
        for row in load_table().datasets:
            if row.hub or not row.label or not row.fixed_options or isinstance(row.of, dict):
                continue
            feature = tfds.builder(row.tfds).info.features[row.label]
            names = getattr(feature, 'names', None)
            if names and not names[0].isdigit():
                assert all(name in MEANT[text].split() for name, text in zip(names, row.of, strict=True)), row
                checked += 1
    assert checked >= 18


def test_labels_become_the_answers_that_they_number():
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


def test_a_record_without_a_field_is_named():
    with pytest.raises(UserError, match=r"datasets.json: anli_r1: 'context' is not in its records, which have premise"):
        list(items(TABLE_ROWS['anli_r1'], {'premise': 'a', 'hypothesis': 'b', 'label': 0}))


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
    (lambda t: t['datasets'][0].update(submixture='flan'), "submixture 'flan' is not one of flan2021"),
    (lambda t: t['datasets'][0].update(splits='oficial'), "splits 'oficial' is not one of official"),
    (lambda t: t['datasets'][0].update(splits={'test': 'test'}), 'splits has no "train"'),
    (lambda t: t['datasets'][0].update(make=['lettred']), "make 'lettred' is not one of joined"),
    (lambda t: t['datasets'][0].update(name='anli_r2'), "2 data sets are named 'anli_r2'"),
    (lambda t: t['datasets'][0].update(answer='{x}'), 'needs either "answer", or "label" and "of"'),
    (lambda t: t['datasets'][0].pop('tfds'), "datasets[0] (anli_r1) has no 'tfds'"),
    (lambda t: t['datasets'][0].update(hub='anli'), "datasets[0] (anli_r1) has both 'tfds' and 'hub'"),
    (lambda t: t['datasets'][-1].update(splits={'train': 'train[1%:]'}), "split 'train[1%:]' is not like train or"),
    (lambda t: t['datasets'][0].update(published='anli'), "published is 'anli', expected a list of names"),
    (lambda t: t['datasets'][0].update(fild=1), "has the key 'fild'"),
    (lambda t: t['datasets'][0]['fields'].pop('premise'), "fields has no 'premise', which family 'nli' needs"),
    (lambda t: t['datasets'][0]['fields'].update(text=''), "fields has 'text'; family 'nli' has premise, hypothesis"),
    (lambda t: t['submixtures']['flan2021'].update(cap=0), 'submixtures.flan2021.cap is 0'),
    (lambda t: t['mixtures']['flan2022'].update(niv3=0.1),
     "mixtures.flan2022: 'niv3' is not one of the submixtures"),
    (lambda t: t.pop('splits'), "has no 'splits'"),
])  # fmt: skip
def test_a_faulty_table_is_named_in_one_line(tmp_path, change, words):
    assert words in faulty(tmp_path, change)
