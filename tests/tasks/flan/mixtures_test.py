"""tasks/flan/mixtures.py: the tasks train, mixtures have the published rates, and missing data is reported."""

import collections
import itertools
import json
import re
import shutil

import numpy as np
import pytest

from t5flan.data import skipped as broken
from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.config import FORMATS, DataConfig
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.mixtures.mixing import caps, tasks_and_rates
from t5flan.data.mixtures.readers import Reader
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import families
from t5flan.tasks.families import family
from t5flan.tasks.flan import mixtures as flan
from t5flan.tasks.flan.table import load_table
from t5flan.tasks.practice import tasks as practice
from tests.tasks.flan.table_rows import TABLE_ROWS, mocks
from tests.vocabulary import vocabulary_chosen

seqio = pytest.importorskip('seqio')
tfds = pytest.importorskip('tensorflow_datasets')

VOCABULARY = ByteVocabulary()
MUFFIN = ('flan2021', 'dialog', 'program_synthesis')


@pytest.fixture(scope='module', autouse=True)
def registered():
    flan.register()


def config_for(task, **settings):
    return DataConfig(task, 8, {'inputs': 400, 'targets': 200}, 'bytes', **settings)


def read(task, count=12, split='train', **settings):
    """Examples of a task as training reads them."""
    reader = Reader(seqio.TaskRegistry.get(task), config_for(task, split=split, **settings), VOCABULARY, epochs=1)
    made = []
    while len(made) < count and (ready := reader.peek()) is not None:
        made.append(ready.example)
        reader.pop()
    return made


@pytest.mark.parametrize(
    'name', ['anli_r1', 'openbookqa', 'squad_v1', 'wmt16_deen', 'e2e_nlg', 'cos_e', 'ag_news_subset']
)
def test_a_row_trains(name):
    """From TFDS to token ids, as a run reads it."""
    row = TABLE_ROWS[name]
    with mocks():
        made = read(row.task, instructions=InstructionConfig(few_shot=0.5, inverted=0.2))
        held_out = read(row.task, 4, 'validation')
    assert len(made) == 12 and held_out
    for example in (*made, *held_out):
        assert example['inputs'].dtype == np.int32 and len(example['inputs']) <= 400
        assert example['inputs'][-1] == example['targets'][-1] == VOCABULARY.eos_id
        assert not set('{}') & set(example['inputs_pretokenized'] + example['targets_pretokenized'])
    assert {'few-shot', 'zero-shot'} == {example['variant'].split(',')[0] for example in made}
    assert not any('inverted' in example['variant'] for example in held_out)


@pytest.mark.parametrize('format', FORMATS)
def test_a_batch_of_any_format(format):
    """Few-shot prompts train decoder-only models too: the loss is on the targets, not on the exemplars' answers."""
    options = dict(pack=False, streams=1, prefetch=0, instructions=InstructionConfig(few_shot=1))
    settings = config_for('flan2021_anli_r1', format=format, **options)
    with mocks(), TrainPipeline(settings, VOCABULARY) as pipeline:
        batch = next(pipeline)[0]
        examples = read('flan2021_anli_r1', 24, instructions=settings.instructions)
    inputs = 0 if format == 'encoder_decoder' else 1
    found = set()
    for tokens, weights in zip(batch['decoder_target_tokens'], batch['decoder_loss_weights'], strict=True):
        prompt = VOCABULARY.decode(tokens[: np.argmax(weights > 0)]) if inputs else ''
        found.add((VOCABULARY.decode(tokens[weights > 0]), prompt))
    assert found <= {(example['targets_pretokenized'], example['inputs_pretokenized'] * inputs) for example in examples}
    assert len(found) > 1 and all('few-shot' in example['variant'] for example in examples)


@pytest.mark.parametrize('name', ['cos_e', 'snli', 'wmt16_roen'])
def test_a_row_is_a_seqio_task(name):
    """SeqIO reads the task too."""
    with mocks(6), vocabulary_chosen(VOCABULARY):
        task = seqio.get_mixture_or_task(TABLE_ROWS[name].task)
        dataset = task.get_dataset({'inputs': 400, 'targets': 200}, 'train', shuffle=False)
        made = list(dataset.as_numpy_iterator())
    assert len(made) == 6 and all(example['inputs'][-1] == example['targets'][-1] == 1 for example in made)
    assert all(example['variant'] and example['inputs_pretokenized'] for example in made)


def test_a_label_set_is_listed_in_any_order():
    settings = InstructionConfig(few_shot=0, options=1, inverted=0)
    with mocks(60):
        made = read('flan2021_cola', 60, instructions=settings)
    pairs = [(example['inputs_pretokenized'], example['targets_pretokenized']) for example in made]
    assert {answer for text, answer in pairs if '(A)' in text} >= {'(A)', '(B)'}
    assert {text.index(' no') < text.index(' yes') for text, _ in pairs if '(A) ' in text} == {True, False}


def test_rates_are_proportional_to_examples_up_to_the_cap():
    rates = {task.name: rate for task, rate in tasks_and_rates(seqio.MixtureRegistry.get('flan2021'))}
    assert rates['flan2021_cola'] / rates['flan2021_copa'] == pytest.approx(8351 / 350)
    assert rates['flan2021_cola'] / rates['flan2021_wmt14_enfr'] == pytest.approx(8351 / 30_000)
    assert rates['flan2021_wmt14_enfr'] == rates['flan2021_squad_v1']
    assert set(caps(seqio.MixtureRegistry.get('flan2021')).values()) == {30_000}
    assert set(caps(seqio.MixtureRegistry.get('t0_sf')).values()) == {20_000}
    rates = {task.name: rate for task, rate in tasks_and_rates(seqio.MixtureRegistry.get('t0_sf'))}
    assert rates['t0_sf_quail'] / rates['t0_sf_web_questions'] == pytest.approx(13 * 10246 / (5 * 3578)), 'by prompts'
    assert rates['t0_sf_amazon_polarity'] / rates['t0_sf_dbpedia_14_title'] == pytest.approx(9)
    table = {row.task: rate for row, rate in load_table().rates('t0_sf')}
    assert rates == pytest.approx({name: rate / sum(table.values()) for name, rate in table.items()})


@pytest.fixture
def no_files():
    """Removes the mixtures of a user's files that another test registered."""
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
    """Stand-ins for the mixtures that other modules register if the user has the files."""
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
    practice.register()
    flan.register()
    published = {name.replace('flan2021 dialog', 'muffin'): share for name, share in shares.items()}
    assert load_table().mixtures[mixture] == published
    without = {part: share for part, share in shares.items() if part not in ('niv2', 'cot')}
    assert by_part(mixture) == pytest.approx({part: share / sum(without.values()) for part, share in without.items()})
    said = broken.notes(mixture)
    assert any(line.startswith('niv2') and 'NATURAL_INSTRUCTIONS_DIR' in line for line in said)
    assert any(line.startswith('cot (') and 'DataConfig.cot' in line for line in said)
    assert any('t0_sf_ropes_situation: ' in line and 'UnifiedQA' in line for line in said)
    request.getfixturevalue('files_given')
    flan.register()
    assert by_part(mixture) == pytest.approx(shares)
    assert not any(line.startswith(('niv2', 'cot')) for line in broken.notes(mixture))


def by_part(mixture):
    """Share of each submixture, by the prefix of its tasks' names."""
    found = collections.Counter()
    for task, rate in tasks_and_rates(seqio.MixtureRegistry.get(mixture)):
        part = {'practice_add': 'cot', 'practice_subtract': 'niv2'}.get(task.name)
        part = part or next(name for name in (*MUFFIN, 't0_sf') if task.name.startswith(f'{name}_'))
        found[part if mixture == 'flan2022' or part not in MUFFIN else 'flan2021 dialog'] += rate
    return dict(found)


def test_counts_need_no_reading():
    source = seqio.TaskRegistry.get('flan2021_wmt14_enfr').source
    assert source.num_input_examples('train') == 40_836_715 and source.num_input_examples('validation') is None


@pytest.fixture
def data_dir(tmp_path):
    seqio.set_tfds_data_dir_override(str(tmp_path))
    yield tmp_path
    seqio.set_tfds_data_dir_override(None)


def test_one_line_for_a_data_set_that_is_not_prepared(data_dir):
    with pytest.raises(UserError) as error:
        read('t0_sf_qasc')
    line = str(error.value)
    assert 'task t0_sf_qasc' in line and 'tfds build qasc' in line and '\n' not in line


def test_streams_read_a_prepared_data_set_with_its_slices(data_dir, monkeypatch):
    """TFDS writes its files from records made here instead of downloaded ones; the rest is as for a user."""
    builder = tfds.builder_cls('web_questions')
    made = ((i, {'url': '', 'question': f'question {i}?', 'answers': [f'answer {i}']}) for i in range(260))
    monkeypatch.setattr(builder, '_split_generators', lambda self, download: {'train': made})
    tfds.builder('web_questions', data_dir=data_dir).download_and_prepare()
    seen = {'train': set(), 'validation': set()}
    for split, stream in itertools.product(seen, range(2)):
        settings = config_for('t0_sf_web_questions', split=split, instructions=InstructionConfig(inverted=0))
        reader = Reader(seqio.TaskRegistry.get('t0_sf_web_questions'), settings, VOCABULARY, stream, 2, epochs=1)
        while (ready := reader.peek()) is not None:
            text, answer = ready.example['inputs_pretokenized'], ready.example['answer']
            assert answer not in seen[split] and text.count(answer.replace('answer', 'question') + '?') == 1
            seen[split].add(answer)
            if split == 'validation':
                assert not seen[split] & set(re.findall(r'answer \d+', text)), 'exemplars come from the training split'
            reader.pop()
    assert (len(seen['train']), len(seen['validation'])) == (60, 200) and not seen['train'] & seen['validation']


def test_faulty_wordings_stop_a_run_or_skip_their_tasks(tmp_path, monkeypatch):
    shutil.copytree(families.TEMPLATES, tmp_path / 'templates')
    nli = json.loads((tmp_path / 'templates' / 'nli.json').read_text('utf-8'))
    nli['templates'] = ['{premise} {hypotesis}']
    (tmp_path / 'templates' / 'nli.json').write_text(json.dumps(nli), 'utf-8')
    monkeypatch.setattr(families, 'TEMPLATES', tmp_path / 'templates')
    monkeypatch.setattr(broken, '_skipped', {})
    family.cache_clear()
    names = [row.task for row in load_table().datasets if row.family == 'nli']
    before = {name: seqio.TaskRegistry.get(name) for name in names}
    for name in names:
        seqio.TaskRegistry.remove(name)
    seqio.MixtureRegistry.remove('flan2021')
    try:
        line = r'nli.json: templates\[0\].inputs names {hypotesis}; it may name premise'
        with pytest.raises(UserError, match=line):
            flan.register()
        flan.register(skip_broken=True)
        assert set(broken.skipped_tasks()) == set(names) and 'hypotesis' in broken.skipped_tasks()['flan2021_snli']
        rates = tasks_and_rates(seqio.MixtureRegistry.get('flan2021'))
        assert len(rates) == len([row for row in load_table().datasets if row.submixture == 'flan2021']) - len(names)
    finally:
        monkeypatch.undo()
        family.cache_clear()
        for name in names:
            seqio.TaskRegistry.add_provider(name, before[name])
        seqio.MixtureRegistry.remove('flan2021')
        flan.register()
