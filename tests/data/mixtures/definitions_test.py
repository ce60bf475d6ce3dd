"""t5flan/data/mixtures/definitions.py: what is defined without SeqIO is what SeqIO would have."""

import json
import os
import subprocess
import sys

import pytest
import seqio

from t5flan.data.mixtures import definitions, mixing
from t5flan.data.mixtures.definitions import CachePlace, Mixture
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.seqio_vocabulary import chosen_vocabulary
from t5flan.errors import UserError
from t5flan.scoring.metrics import exact_match


@pytest.fixture
def unpublished(monkeypatch):
    """As before SeqIO is imported, with no definitions; at the end, no name of the test is left in SeqIO."""
    for name in ('_tasks', '_mixtures', '_reserved'):
        monkeypatch.setattr(definitions, name, {})
    monkeypatch.setattr(definitions, '_vocabulary', [])
    monkeypatch.setattr(definitions, 'is_published', lambda: False)
    yield
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in [name for name in registry.names() if name.startswith('defined_')]:
            registry.remove(name)


def source(size):
    return IndexedSource(
        dict.fromkeys(('train', 'validation'), [{'inputs': 'a', 'targets': str(i)} for i in range(size)])
    )


def scores_of(targets, scores):
    return {'mean_score': sum(scores)}


def add(name, size=3, **options):
    definitions.add_task(name, source(size), [tokenize.before_cache(), CachePlace(), append_eos], **options)


def add_all():
    add('defined_a', 3, postprocess_fn=lambda text, **_: text.upper(), metric_fns=[exact_match, scores_of])
    add('defined_b', 9)
    definitions.add_mixture('defined_inner', [('defined_a', 1.0), ('defined_b', mixing.ByExamples(cap=5))])
    definitions.add_mixture('defined_outer', [('defined_inner', 3.0), ('defined_b', 1.0)])


def described(name):
    """What the pipeline and the evaluation read of a task or mixture."""
    found = mixing.find_mixture(name)
    rates = {task.name: pytest.approx(rate) for task, rate in mixing.tasks_and_rates(found)}
    tasks = [
        (task.name, sorted(task.splits), task.num_input_examples('train'), list(task.output_features))
        + (task.postprocess_fn('x', is_target=False), len(task.preprocessors))
        + (task.predict_metric_fns, task.score_metric_fns, task.predict_with_aux_metric_fns, list(task.metric_fns))
        for task in mixing.tasks_of(found)
    ]
    return rates, tasks, mixing.caps(found)


NAMES = ('defined_a', 'defined_b', 'defined_inner', 'defined_outer')


def test_definitions_are_what_seqio_has(unpublished, monkeypatch):
    add_all()
    before = [described(name) for name in NAMES]
    assert isinstance(definitions.find('defined_outer'), Mixture) and {*NAMES[:2]} == definitions.task_names()
    assert not {*NAMES} & {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    definitions.choose_vocabulary(ByteVocabulary(extra_ids=7))
    monkeypatch.setattr(definitions, 'is_published', lambda: True)
    definitions.publish()
    assert [described(name) for name in NAMES] == before
    found = definitions.find('defined_outer')
    assert isinstance(found, seqio.Mixture) and found is seqio.MixtureRegistry.get('defined_outer')
    assert isinstance(seqio.TaskRegistry.get('defined_a').source, seqio.DataSource)
    assert chosen_vocabulary().extra_ids == 7
    dataset = seqio.get_mixture_or_task('defined_outer').get_dataset(
        {'inputs': 8, 'targets': 8}, 'train', shuffle=False
    )
    assert next(dataset.as_numpy_iterator())['inputs'].tolist() == [ord('a') + 3, 1]


@pytest.mark.parametrize('published', [False, True])
def test_wrong_definitions_are_the_same_errors(unpublished, monkeypatch, published):
    monkeypatch.setattr(definitions, 'is_published', lambda: published)
    add('defined_a')
    add('defined_targets', features=('targets',))
    definitions.add_mixture('defined_m', [('defined_a', 1.0)])
    with pytest.raises(ValueError, match='duplicate provider: defined_a'):
        add('defined_a')
    with pytest.raises(ValueError, match='duplicate provider: defined_m'):
        definitions.add_mixture('defined_m', [('defined_a', 2.0)])
    with pytest.raises(ValueError, match="Task name 'defined a' contains invalid characters"):
        add('defined a')
    with pytest.raises(ValueError, match='defined_none'):
        definitions.add_mixture('defined_n', [('defined_none', 1.0)])
    with pytest.raises(ValueError, match='does not contain any Tasks'):
        definitions.add_mixture('defined_n', [])
    with pytest.raises(ValueError, match='different output features'):
        definitions.add_mixture('defined_n', [('defined_a', 1.0), ('defined_targets', 1.0)])
    definitions.remove_mixture('defined_m')
    definitions.remove_task('defined_a')
    definitions.remove_task('defined_a')
    assert definitions.find('defined_m') is None is definitions.find('defined_a')


def test_reserved_names_are_taken(unpublished):
    definitions.reserve(['defined_later'])
    with pytest.raises(ValueError, match='duplicate provider: defined_later'):
        add('defined_later')
    assert 'defined_later' in definitions.task_names() and definitions.find('defined_later') is None


def test_a_name_that_seqio_has_already_is_one_line(unpublished):
    add('defined_a')
    seqio.TaskRegistry.add('defined_a', source=source(1), preprocessors=[], output_features={})
    with pytest.raises(UserError, match='cannot be registered with SeqIO: .*defined_a. Rename it.$'):
        definitions.publish()


NATIVE = """
import json, sys, zlib
from t5flan import tasks
from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask, TextFiles
from t5flan.data.mixture_config import Mixture
from t5flan.data.vocabulary.loading import load_vocabulary
folder, native = sys.argv[1], sys.argv[2] == 'native'
config = DataConfig(
    'native_mixture', 8, {'inputs': 64, 'targets': 32}, 'bytes', prefetch=0,
    text_files=(TextFiles('native_text', f'{folder}/a.txt', max_chars=50),),
    file_tasks=(FileTask('native_rows', f'{folder}/rows.jsonl'),),
    mixtures=(Mixture('native_mixture', rates={'native_text_ul2': 1.0, 'native_rows': 1.0, 'practice': 1.0}),),
)
done = tasks.register_natively(config) if native else not tasks.register_all(config)
with TrainPipeline(config, load_vocabulary('bytes')) as pipeline:
    batches = [next(pipeline) for _ in range(3)]
data = b''.join(batch[name].tobytes() for batch, _ in batches for name in sorted(batch))
heavy = [name for name in ('tensorflow', 'seqio', 'jax') if name in sys.modules]
print(json.dumps([done, zlib.crc32(data), batches[-1][1], heavy]))
"""


def run_on_files(tmp_path, kind):
    """What NATIVE prints."""
    (tmp_path / 'a.txt').write_text('Some words of text, again and again.\n' * 60)
    rows = ({'inputs': f'question {i}', 'targets': f'answer {i}'} for i in range(50))
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    environment = os.environ | {'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    command = [sys.executable, '-c', NATIVE, str(tmp_path), kind]
    made = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout.splitlines()[-1])


def test_a_run_on_files_imports_no_tensorflow(tmp_path):
    done, _, _, heavy = run_on_files(tmp_path, 'native')
    assert done is True and heavy == []


@pytest.mark.slow
def test_batches_are_those_of_tasks_that_are_registered_with_seqio(tmp_path):
    native, with_seqio = (run_on_files(tmp_path, kind) for kind in ('native', 'seqio'))
    assert native[1:3] == with_seqio[1:3] and {'tensorflow', 'seqio'} <= set(with_seqio[3])
