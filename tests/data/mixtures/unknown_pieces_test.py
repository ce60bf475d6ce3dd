"""t5flan/data/mixtures/unknown_pieces.py: text that a vocabulary loses is counted and named."""

import io
import json

import pytest
import sentencepiece

from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask, TextFiles
from t5flan.data.mixtures.unknown_pieces import measure_unknown, unknown_lines
from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.tasks import register_all
from tests.vocabulary import bpe_folder, bpe_vocabulary, small_vocabulary

LENGTHS = {'inputs': 64, 'targets': 64}


@pytest.fixture(scope='module')
def vocabulary():
    """Pieces of lower-case letters, digits and some signs, as T5's: no braces, no other scripts."""
    model = io.BytesIO()
    text = [f'the name: item {i} is "item", and so on.' for i in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return SentencePieceVocabulary('t5 like', model=model.getvalue())


def write(path, rows):
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
    return str(path)


def plan_of(name, vocabulary, **options):
    data = DataConfig(name, 2, LENGTHS, 'unused', prefetch=0, **options)
    register_all(data)
    return data, TrainPipeline(data, vocabulary).plan


def test_a_file_that_loses_braces_and_characters(tmp_path, vocabulary):
    rows = [{'inputs': f'item {i}', 'targets': '{"name": "漢字"}'} for i in range(6)]
    path = write(tmp_path / 'a.jsonl', rows)
    task = FileTask(name='unknown_braces', train=path, validation=path)
    data, plan = plan_of('unknown_braces', vocabulary, file_tasks=(task,))
    found = measure_unknown(plan.tasks[0], data, vocabulary)
    assert found.characters == {'{': 6, '}': 6, '漢': 6, '字': 6} and found.unknown == 18
    [line] = unknown_lines(data, vocabulary, plan)
    assert line.startswith('unknown_braces: ') and line.endswith("whose text is lost: '{' 6, '漢' 6, '字' 6, '}' 6")


def test_raw_text_names_its_characters_too(tmp_path, vocabulary):
    path = tmp_path / 'raw.txt'
    path.write_text('the <name> is "item"\n' * 40)
    files = TextFiles('unknown_raw', str(path), unit='line')
    data, plan = plan_of('unknown_raw_span_corruption', vocabulary, text_files=(files,))
    [line] = unknown_lines(data, vocabulary, plan)
    assert "'<' " in line and "'>' " in line


def test_text_that_the_vocabulary_spells(tmp_path, vocabulary):
    path = write(tmp_path / 'a.jsonl', [{'inputs': 'the item', 'targets': 'so on'}] * 3)
    data, plan = plan_of('unknown_none', vocabulary, file_tasks=(FileTask('unknown_none', path, validation=path),))
    assert unknown_lines(data, vocabulary, plan) == ['unknown pieces: none in the first 200 examples of 1 of 1 tasks']


def test_vocabularies_that_lose_nothing(vocabulary):
    assert vocabulary.loses_text and not small_vocabulary().loses_text, 'one has pieces for bytes'
    assert not ByteVocabulary(100).loses_text and not IdsVocabulary(10).loses_text


def test_a_byte_level_tokenizer_loses_nothing_and_one_of_words_does(tmp_path):
    tokenizers = pytest.importorskip('tokenizers', reason='the extra convert is not installed')
    bpe_folder(tmp_path)
    assert not bpe_vocabulary(tmp_path, None).loses_text
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'<pad>': 0, '</s>': 1, '<unk>': 2, 'a': 3}, '<unk>'))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / 'words.json'))
    made = TokenizerJsonVocabulary(tmp_path / 'words.json', 1, 0)
    assert made.loses_text and made.encode('a b') == [3, 2] and made.unk_id == 2
