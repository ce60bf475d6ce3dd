"""t5flan/data/vocabulary/seqio_vocabulary.py: SeqIO tasks use the run's vocabulary and our preprocessors."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5flan.data.preprocessing.examples import example_fn
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary import seqio_vocabulary
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.seqio_vocabulary import ConfiguredVocabulary, check_vocabulary, text_features
from t5flan.errors import UserError
from tests.vocabulary import vocabulary_chosen

LENGTHS = {'inputs': 16, 'targets': 8}
RECORDS = [{'word': word} for word in ('alpha', 'né', 'gamma ray')]


@example_fn
def spell(example, context):
    return {'inputs': 'spell ' + example['word'], 'targets': example['word'], 'extra': len(example['word'])}


def test_configured_vocabulary_is_the_chosen_one():
    vocabulary = ConfiguredVocabulary()
    with vocabulary_chosen(ByteVocabulary(extra_ids=5)):
        assert (vocabulary.vocab_size, vocabulary.eos_id, vocabulary.unk_id, vocabulary.pad_id) == (264, 1, 2, 0)
        assert vocabulary.encode('né') == [113, 198, 172] and vocabulary.decode([113, 198, 172, 1, 5]) == 'né'
        assert vocabulary.encode_tf(tf.constant('né')).numpy().tolist() == [113, 198, 172]
        assert vocabulary.decode_tf(tf.constant([113, 198, 172])).numpy().decode() == 'né'
    assert vocabulary == ConfiguredVocabulary() and vocabulary != seqio.ByteVocabulary()


def test_a_task_needs_a_chosen_vocabulary(monkeypatch):
    monkeypatch.setattr(seqio_vocabulary, '_chosen', [])
    with pytest.raises(UserError, match='no vocabulary was chosen'):
        _ = ConfiguredVocabulary().vocab_size


def test_seqio_runs_our_preprocessors():
    seqio.TaskRegistry.add(
        'seqio_vocabulary_spell',
        source=IndexedSource({'train': RECORDS}),
        preprocessors=[spell, tokenize, append_eos],
        output_features=text_features(),
    )
    with vocabulary_chosen(ByteVocabulary()):
        dataset = seqio.get_mixture_or_task('seqio_vocabulary_spell').get_dataset(LENGTHS, 'train', shuffle=False)
        made = list(dataset.as_numpy_iterator())
        assert len(made) == 3
        for record, one in zip(RECORDS, made, strict=True):
            text = 'spell ' + record['word']
            assert one['inputs'].tolist() == [*ByteVocabulary().encode(text), 1][:16]
            assert one['inputs'].dtype == np.int32
            assert one['inputs_pretokenized'].decode() == text and int(one['extra']) == len(record['word'])


def test_a_preprocessor_that_drops_every_example_is_one_line():
    nothing = example_fn(lambda example, context: None)
    with pytest.raises(UserError, match='dropped every example'):
        nothing(IndexedSource({'train': RECORDS}).get_dataset('train', shuffle=False))


def test_a_task_with_another_vocabulary_is_refused(shared):
    path = shared / 'data/vocab/t5_cc_all_32000/sentencepiece.model'
    own = seqio.SentencePieceVocabulary(str(path), extra_ids=100)
    features = {name: seqio.Feature(own) for name in LENGTHS}
    task = seqio.Task('seqio_vocabulary_own', IndexedSource({'train': RECORDS}), features)
    check_vocabulary(task, load_vocabulary(path))
    with pytest.raises(UserError, match="task seqio_vocabulary_own: feature 'inputs' is tokenized by"):
        check_vocabulary(task, ByteVocabulary())
