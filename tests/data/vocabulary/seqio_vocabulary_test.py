"""t5flan/data/vocabulary/seqio_vocabulary.py: our preprocessors and vocabularies inside SeqIO."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5flan.data.preprocessing.examples import example_fn
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary import seqio_vocabulary as seqio_bridge
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.seqio_vocabulary import ConfiguredVocabulary, text_features, vocabulary_chosen
from t5flan.errors import UserError

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
    monkeypatch.setattr(seqio_bridge, '_chosen', [])
    with pytest.raises(UserError, match='no vocabulary was chosen'):
        ConfiguredVocabulary().vocab_size


def test_seqio_runs_our_preprocessors():
    seqio.TaskRegistry.add(
        'bridge_spell',
        source=IndexedSource({'train': RECORDS}),
        preprocessors=[spell, tokenize, append_eos],
        output_features=text_features(),
    )
    with vocabulary_chosen(ByteVocabulary()):
        made = list(
            seqio.get_mixture_or_task('bridge_spell').get_dataset(LENGTHS, 'train', shuffle=False).as_numpy_iterator()
        )
        assert len(made) == 3
        for record, one in zip(RECORDS, made, strict=True):
            text = 'spell ' + record['word']
            assert (
                one['inputs'].tolist() == [*ByteVocabulary().encode(text), 1][:16] and one['inputs'].dtype == np.int32
            )
            assert one['inputs_pretokenized'].decode() == text and int(one['extra']) == len(record['word'])


def test_a_preprocessor_that_leaves_nothing():
    nothing = example_fn(lambda example, context: None)
    with pytest.raises(UserError, match='left no example'):
        nothing(IndexedSource({'train': RECORDS}).get_dataset('train', shuffle=False))


def test_a_task_with_another_vocabulary_is_refused(shared):
    path = shared / 'data/vocab/t5_cc_all_32000/sentencepiece.model'
    own = seqio.SentencePieceVocabulary(str(path), extra_ids=100)
    task = seqio.Task('bridge_own', IndexedSource({'train': RECORDS}), {name: seqio.Feature(own) for name in LENGTHS})
    seqio_bridge.check_vocabulary(task, load_vocabulary(path))
    with pytest.raises(UserError, match="task bridge_own: feature 'inputs' is tokenized by"):
        seqio_bridge.check_vocabulary(task, ByteVocabulary())
