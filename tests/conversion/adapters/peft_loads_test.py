"""PEFT itself loads the adapters that t5flan writes, and computes the same logits."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import t5flan
from t5flan.adapters import adapter as adapters
from t5flan.adapters.combine import CONVENTIONS
from t5flan.adapters.methods.dora import Dora
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.lora import Lora
from t5flan.adapters.methods.prefix_tuning import PrefixTuning
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.conversion import convert
from t5flan.conversion.adapters import folder as adapter_folder
from tests.adapters.properties import moved

pytestmark = pytest.mark.slow
TOLERANCE = 2e-4
LORAS = {
    'lora': Lora(rank=4),
    'rslora everywhere': Lora(rank=3, rslora=True, targets=['.*/layers/.*/kernel']),
    'patterns': Lora(
        rank=2,
        rank_pattern={'.*/value/.*': 5},
        alpha_pattern={'.*/query/.*': 3.0},
        targets=['decoder/.*/(query|value)/.*'],
    ),
    'bias': Lora(rank=2, bias=True),
    'dora': Dora(rank=3),
    'ia3': Ia3(),
}
CASES = [(base, name) for base in ('t5_v1_1', 'llama') for name in LORAS]
SETTINGS = LORAS | {'prompt': PromptTuning(tokens=5), 'prefix': PrefixTuning(tokens=4, shared=True)}
CASES += [('t5_v1_1', 'prompt'), ('t5_v1_1', 'prefix')]


@pytest.fixture(scope='module')
def bases(tmp_path_factory, shared, peft_library):
    """Name -> (the folder of Hugging Face, its conversion)."""
    found = {}
    for name in ('t5_v1_1', 'llama'):
        source = shared / 'fixtures' / 'hf' / name
        folder = tmp_path_factory.mktemp('base') / name
        convert.write(convert.read(source, 'hf'), folder, 't5flan')
        found[name] = source, folder
    return found


def write_adapter(base, folder, settings, seed):
    """A folder of t5flan with an adapter of random numbers."""
    model = t5flan.load(base).model
    adapted = jax.jit(lambda model: moved(adapters.apply(model, settings, jax.random.key(seed))))(model)
    arrays = {name: np.asarray(x) for name, x in adapters.adapter_arrays(adapted).items()}
    folder.mkdir()
    adapter_folder.write(folder, str(base), settings, arrays, {})
    return folder


def load_theirs(source):
    import transformers

    kind = transformers.AutoModelForCausalLM if source.name == 'llama' else transformers.AutoModelForSeq2SeqLM
    return kind.from_pretrained(source).eval()


def batch_of(source, rows=3):
    vocab_size = json.loads((source / 'config.json').read_text())['vocab_size']
    rng = np.random.default_rng(0)
    names = ['decoder_input_tokens'] + ['encoder_input_tokens'] * (source.name != 'llama')
    return {name: rng.integers(3, vocab_size, (rows, 9)).astype(np.int32) for name in names}


def logits_of(model, batch):
    import torch

    tokens = {name: torch.tensor(x, dtype=torch.long) for name, x in batch.items()}
    inputs = {'input_ids': tokens.get('encoder_input_tokens', tokens['decoder_input_tokens'])}
    inputs['attention_mask'] = torch.ones_like(inputs['input_ids'])
    if 'encoder_input_tokens' in tokens:
        inputs['decoder_input_ids'] = tokens['decoder_input_tokens']
    with torch.no_grad():
        return model(**inputs).logits.numpy()


@pytest.mark.parametrize(('base', 'name'), CASES)
def test_logits_in_peft_are_ours(bases, tmp_path, base, name):
    import peft

    source, converted = bases[base]
    folder = write_adapter(converted, tmp_path / 'ours', SETTINGS[name], seed=1)
    convert.main(str(folder), str(tmp_path / 'theirs'), 't5flan', 'peft')
    theirs = load_theirs(source)
    batch = batch_of(source)
    plain = logits_of(theirs, batch)
    model = peft.PeftModel.from_pretrained(theirs, str(tmp_path / 'theirs')).eval()
    ours = t5flan.load(folder).logits(batch)
    np.testing.assert_allclose(logits_of(model, batch), ours, atol=TOLERANCE, rtol=0)
    assert np.abs(ours - plain).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ('settings', 'convention'), [*((Lora(rank=4), one) for one in CONVENTIONS), (Ia3(), 'linear')], ids=str
)
def test_a_weighted_sum_is_pefts(bases, tmp_path, settings, convention):
    import peft

    source, converted = bases['llama']
    weights = (0.7, -0.4)
    model = None
    for name, seed in (('a', 1), ('b', 2)):
        folder = write_adapter(converted, tmp_path / name, settings, seed)
        convert.main(str(folder), str(tmp_path / f'peft {name}'), 't5flan', 'peft')
        if model is None:
            model = peft.PeftModel.from_pretrained(load_theirs(source), str(tmp_path / 'peft a'), adapter_name='a')
        else:
            model.load_adapter(str(tmp_path / 'peft b'), adapter_name='b')
    how = {'combination_type': convention} if isinstance(settings, Lora) else {}  # of (IA)3 it is always linear
    model.add_weighted_adapter(['a', 'b'], list(weights), 'sum', **how)
    model.set_adapter('sum')
    sources = ','.join(f'{tmp_path}/{name}:{weight}' for name, weight in zip('ab', weights))
    convert.main(sources, str(tmp_path / 'sum'), 't5flan', 't5flan', combine=convention)
    batch = batch_of(source)
    ours = t5flan.load(tmp_path / 'sum').logits(batch)
    np.testing.assert_allclose(logits_of(model.eval(), batch), ours, atol=TOLERANCE, rtol=0)


def test_rows_are_pefts_mixed_batch(bases, tmp_path):
    """`adapter_names` of PEFT chooses an adapter for each row too."""
    import peft
    import torch

    source, converted = bases['llama']
    folders = {}
    model = None
    for name, settings in (('a', Lora(rank=4)), ('b', dataclasses.replace(Lora(rank=2), alpha=3.0))):
        folders[name] = write_adapter(converted, tmp_path / name, settings, 3)
        convert.main(str(folders[name]), str(tmp_path / f'peft {name}'), 't5flan', 'peft')
        if model is None:
            model = peft.PeftModel.from_pretrained(load_theirs(source), str(tmp_path / 'peft a'), adapter_name='a')
        else:
            model.load_adapter(str(tmp_path / 'peft b'), adapter_name='b')
    batch = batch_of(source)
    with torch.no_grad():
        tokens = torch.tensor(batch['decoder_input_tokens'], dtype=torch.long)
        expected = model.eval()(input_ids=tokens, adapter_names=['b', '__base__', 'a']).logits.numpy()
    found = t5flan.load(converted, adapters=folders).logits(batch, adapter=['b', None, 'a'])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
