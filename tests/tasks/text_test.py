"""tasks/text.py: the standard library's documentation, local text and C4 as tasks."""

import dataclasses
import json
import re

import numpy as np
import pytest
import seqio

from t5flan.data.batches.pipeline import TrainPipeline, eval_batches, eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import TextFiles
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import register_all, text
from tests.data.preprocessing.spans import restore
from tests.tasks.tfds_loader import Loader

VOCABULARY = ByteVocabulary(extra_ids=100)
OBJECTIVES = ('span_corruption', 'prefix_lm', 'causal_lm')


def config(mixture, **options):
    return DataConfig(mixture, 4, {'inputs': 128, 'targets': 64}, 'bytes', **{'prefetch': 0} | options)


def format_of(objective):
    return {'span_corruption': 'encoder_decoder', 'prefix_lm': 'prefix_lm', 'causal_lm': 'causal_lm'}[objective]


@pytest.fixture(scope='module', autouse=True)
def home(tmp_path_factory):
    """A cache folder for this file."""
    patch = pytest.MonkeyPatch()
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    text.stdlib_documents.cache_clear()
    register_all()
    yield
    patch.undo()
    text.stdlib_documents.cache_clear()


def test_the_documentation_is_english_prose_and_cached(tmp_path, monkeypatch):
    documents = text.stdlib_documents()
    assert len(documents) > 1000 and 1_000_000 < sum(map(len, documents)) < 20_000_000
    assert len(set(documents)) == len(documents) and min(map(len, documents)) >= 200
    words = re.findall(r'[a-z]+', ' '.join(documents[:300]).lower())
    assert words.count('the') / len(words) > 0.02
    text.stdlib_documents.cache_clear()
    monkeypatch.setattr(text, '_read_documents', lambda folder: pytest.fail('the sources were read again'))
    assert text.stdlib_documents() == documents


def test_a_broken_cache_and_a_read_only_home(tmp_path, monkeypatch):
    documents = text.stdlib_documents()
    (tmp_path / 't5flan').write_text('a file where the folder should be')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(text, '_read_documents', lambda folder: iter(documents[:10]))
    text.stdlib_documents.cache_clear()
    assert text.stdlib_documents() == tuple(documents[:10])
    (tmp_path / 't5flan').unlink()
    text.stdlib_documents.cache_clear()
    text.stdlib_documents()
    cache = next((tmp_path / 't5flan').iterdir())
    cache.write_text('[')
    text.stdlib_documents.cache_clear()
    assert text.stdlib_documents() == tuple(documents[:10]) and len(json.loads(cache.read_text('utf-8'))) == 10
    monkeypatch.undo()
    text.stdlib_documents.cache_clear()


def test_documents_are_held_out_whole():
    train, validation = ({one['text'] for one in text.stdlib_docs(split)} for split in ('train', 'validation'))
    assert not train & validation and 0.005 < len(validation) / len(train) < 0.06
    chunks = [len(text.stdlib_docs(split)) for split in ('train', 'validation')]
    assert sum(chunks) >= len(text.stdlib_documents())


@pytest.mark.parametrize(
    'objective', [pytest.param(name, marks=[pytest.mark.slow] if name == 'prefix_lm' else []) for name in OBJECTIVES]
)
def test_the_documentation_trains_every_objective(objective):
    settings = config(f'stdlib_docs_{objective}', format=format_of(objective))
    pipeline = TrainPipeline(settings, VOCABULARY)
    batch = [next(pipeline)[0] for _ in range(3)][-1]
    assert batch['decoder_loss_weights'].sum() > 50
    report = pipeline.report()
    assert report['packing_efficiency'] > 0.6
    assert report['tasks'][settings.mixture]['trimmed'] == 0, 'windows fit, nothing is trimmed'
    evaluated = next(eval_batches(dataclasses.replace(settings, split='validation'), VOCABULARY))
    assert evaluated['decoder_loss_weights'].sum() > 50


def test_local_files_lose_no_text(tmp_path):
    """All of a .txt corpus comes back from one epoch of each objective."""
    story = ' '.join(f'word{i}' for i in range(700)) + '\n\n' + ' '.join(f'naïve{i}' for i in range(300)) + '\n'
    (tmp_path / 'a.txt').write_text(story, 'utf-8')
    path = str(tmp_path / 'a.txt')
    files = TextFiles(name='text_story', train=path, validation=path, max_chars=500)
    register_all(config('text_story_causal_lm', text_files=(files,)))
    register_all(config('text_story_causal_lm', text_files=(files,)))
    rebuilt = {
        'span_corruption': lambda one: restore(one['inputs'][:-1], one['targets'][:-1], VOCABULARY),
        'prefix_lm': lambda one: np.concatenate([one['inputs'][:-1], one['targets'][:-1]]),
        'causal_lm': lambda one: one['targets'][one['targets'] != 1],
    }
    for objective in OBJECTIVES:
        examples = eval_examples(config(f'text_story_{objective}', format=format_of(objective)), VOCABULARY)
        assert examples.counts.trimmed == 0
        tokens = np.concatenate([rebuilt[objective](one) for one in examples])
        assert VOCABULARY.decode(tokens) == story
    with pytest.raises(UserError, match="TextFiles.name='stdlib_docs': the task stdlib_docs_causal_lm exists already"):
        register_all(config('x', text_files=(TextFiles(name='stdlib_docs', train='a.txt'),)))


def test_c4_reads_through_tfds(tmp_path, monkeypatch):
    """Without a download: records of its format replace the builder's. They are read in order, resumed by skipping."""
    records = {'text': [f'Document {i}. ' + 'Some words of it. ' * (i % 9) for i in range(50)], 'url': ['u'] * 50}

    task = seqio.get_mixture_or_task('c4_span_corruption')
    assert isinstance(task.source, seqio.TfdsDataSource) and 'c4/en:3.1.0' in repr(task.source)
    monkeypatch.setattr(task.source, '_tfds_dataset', Loader(records))
    settings = config('c4_span_corruption', streams=2)
    pipeline = TrainPipeline(settings, VOCABULARY)
    batches = [next(pipeline) for _ in range(8)]
    again = TrainPipeline(settings, VOCABULARY)
    again.start(batches[4][1])
    np.testing.assert_array_equal(next(again)[0]['encoder_input_tokens'], batches[5][0]['encoder_input_tokens'])
    one = eval_examples(dataclasses.replace(settings, split='validation'), VOCABULARY, limit=1)[0]
    assert VOCABULARY.decode(restore(one['inputs'][:-1], one['targets'][:-1], VOCABULARY)) == records['text'][0]


def test_one_line_if_c4_is_not_prepared(tmp_path, monkeypatch):
    class Missing:
        def load(self, *arguments, **options):
            raise AssertionError('Dataset c4: could not find data in /nowhere.\nPlease build it.')

        files = load

    task = seqio.get_mixture_or_task('mc4_fr_prefix_lm')
    monkeypatch.setattr(task.source, '_tfds_dataset', Missing())
    line = 'task mc4_fr_prefix_lm: its source .* cannot be read: AssertionError Dataset c4: could'
    with pytest.raises(UserError, match=line) as error:
        next(TrainPipeline(config('mc4_fr_prefix_lm'), VOCABULARY))
    assert '\n' not in str(error.value)
