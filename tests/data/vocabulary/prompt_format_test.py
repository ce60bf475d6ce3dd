"""t5flan/data/vocabulary/prompt_format.py: training and inference join a prompt and its answer in the same way."""

import dataclasses
import itertools

import numpy as np
import pytest

from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import Context, run_block
from t5flan.data.preprocessing.features import STARTED
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.vocabulary import chat_template
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.prompt_format import answer_ids, end_id, fitting_prompt_ids, prompt_ids, tokens_around
from t5flan.errors import UserError
from t5flan.language_model import LanguageModel
from tests.saved_model import LENGTHS, byte_model
from tests.vocabulary import TEMPLATES, bpe_folder, bpe_vocabulary

BYTES = ByteVocabulary()
ROWS = [('What is 3 + 4?', '7'), ('Say\nhello ', 'Hello!\n\nnaïve 日本'), ('', 'x')]


def example_of(vocabulary, prompt, answer, prompt_format):
    context = Context(vocabulary, {}, instructions=InstructionConfig(prompt_format=prompt_format))
    [[made]] = run_block([tokenize, append_eos], [{'inputs': prompt, 'targets': answer}], [context])
    return made


@pytest.mark.parametrize('prompt,answer', ROWS)
def test_plain_and_newline(prompt, answer):
    plain = example_of(BYTES, prompt, answer, 'plain')
    assert plain['inputs'].tolist() == [*BYTES.encode(prompt), BYTES.eos_id] == prompt_ids(BYTES, prompt, 'plain')
    newline = example_of(BYTES, prompt, answer, 'newline')
    assert newline['inputs'].tolist() == BYTES.encode(f'{prompt}\n') and STARTED not in newline
    for made in (plain, newline):
        assert made['targets'].tolist() == [*BYTES.encode(answer), BYTES.eos_id]
    assert end_id(BYTES, 'newline') == BYTES.eos_id


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    pytest.importorskip('tokenizers', reason='the extra convert is not installed')
    return bpe_folder(tmp_path_factory.mktemp('tokenizer'))


@pytest.mark.parametrize('prompt,answer', ROWS[:2])
@pytest.mark.parametrize('name', TEMPLATES)
def test_chat_rows_are_what_the_template_writes(folder, name, prompt, answer):
    vocabulary = bpe_vocabulary(folder, TEMPLATES[name])
    made = example_of(vocabulary, prompt, answer, 'chat')
    turns = [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': answer}]
    assert made['inputs'].tolist() == chat_template.encode(vocabulary, turns[:1], reply=True) and made[STARTED]
    assert made['targets'].tolist() == answer_ids(vocabulary, prompt, answer, 'chat')
    whole = chat_template.encode(vocabulary, turns)
    ids = [*made['inputs'].tolist(), *made['targets'].tolist()]
    assert ids[-1] == end_id(vocabulary, 'chat') == vocabulary.eos_id
    # Where a piece spans the place between prompt and answer, it is cut: generation starts from the prompt alone.
    text = lambda ids: vocabulary.decode([i for i in ids if i != vocabulary.eos_id])
    assert text(whole).startswith(text(ids)) and (ids == whole[: len(ids)] or name == 'llama3')


@pytest.mark.parametrize('name', [*TEMPLATES, 'newline'])
def test_a_long_prompt_loses_text_and_not_the_turns_around_it(folder, name):
    """Else the answer would come right after a piece of the question, where inference never asks for it."""
    vocabulary = BYTES if name == 'newline' else bpe_vocabulary(folder, TEMPLATES[name])
    prompt_format = 'newline' if name == 'newline' else 'chat'
    text = ' '.join(['How many 日本 words are in this text?'] * 4)
    whole, around = prompt_ids(vocabulary, text, prompt_format), tokens_around(vocabulary, prompt_format)
    pairs = zip(reversed(whole), reversed(prompt_ids(vocabulary, 'a', prompt_format)))
    end = whole[len(whole) - len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]) :]
    assert end
    for limit in (around + 20, len(whole) - 1, len(whole)):
        ids, is_cut = fitting_prompt_ids(vocabulary, text, prompt_format, limit)
        assert len(ids) <= limit and ids[-len(end) :] == end and is_cut == (limit < len(whole))
        context = Context(vocabulary, {'inputs': limit}, instructions=InstructionConfig(prompt_format=prompt_format))
        [[made]] = run_block([tokenize, append_eos], [{'inputs': text, 'targets': 'x'}], [context])
        assert made['inputs'].tolist() == ids and made.get('shortened', False) == is_cut
    ids, is_cut = fitting_prompt_ids(vocabulary, text, prompt_format, 1)
    assert is_cut and 1 < len(ids) <= around + 20 and ids[-len(end) :] == end


def test_a_vocabulary_without_a_template_is_one_line():
    with pytest.raises(UserError, match='has no chat template') as error:
        example_of(BYTES, 'a', 'b', 'chat')
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='InstructionConfig.prompt_format'):
        InstructionConfig(prompt_format='alpaca')


def test_inference_uses_the_format_of_training():
    plain = LanguageModel(byte_model('palm'), BYTES, 'prefix_lm', LENGTHS)
    newline = dataclasses.replace(plain, prompt_format='newline')
    assert plain.input_ids('ab') == prompt_ids(BYTES, 'ab', 'plain')
    assert newline.input_ids('ab') == example_of(BYTES, 'ab', 'c', 'newline')['inputs'].tolist()
    [score] = newline.score(['ab'], ['c'])
    made = example_of(BYTES, 'ab', 'c', 'newline')
    assert score == pytest.approx(newline.score_ids([made['inputs']], [made['targets']])[0])
    assert np.isfinite(score) and score != plain.score(['ab'], ['c'])[0]
