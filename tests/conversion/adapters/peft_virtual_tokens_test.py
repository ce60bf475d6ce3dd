"""Prompts, prefixes and gated prompts in PEFT's format: there and back bit for bit, and PEFT's own outputs."""

import json
import shutil

import numpy as np
import pytest

import t5flan
from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.p_tuning import PTuning
from t5flan.adapters.methods.prefix_tuning import PrefixTuning
from t5flan.conversion import convert
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.conversion.adapters import peft
from t5flan.conversion.safetensors_files import FolderWriter, read_header
from t5flan.errors import UserError
from t5flan.training import checkpoints

TYPES = ('PROMPT_TUNING', 'P_TUNING', 'PREFIX_TUNING', 'ADAPTION_PROMPT')


@pytest.fixture(scope='module')
def base(tmp_path_factory, shared):
    """A converted Llama with grouped keys and values."""
    folder = tmp_path_factory.mktemp('base') / 'llama'
    convert.write(convert.read(shared / 'fixtures' / 'hf' / 'llama', 'hf'), folder, 't5flan')
    return folder


def write_arrays(path, arrays):
    writer = FolderWriter(path.parent, {name: (x.shape, x.dtype) for name, x in arrays.items()}, 2**62)
    for name, array in arrays.items():
        writer.write(name, array)
    writer.close()
    (path.parent / 'model.safetensors').rename(path)


def read_arrays(path):
    return {name: stored.read() for name, stored in read_header(path).items()}


def written_by_hand(folder, kind, config):
    """An adapter's folder as PEFT writes it for a decoder-only model, with random arrays."""
    random = np.random.default_rng(0)
    fields: dict = {'peft_type': kind, 'task_type': 'CAUSAL_LM', 'inference_mode': True}
    if kind == 'ADAPTION_PROMPT':
        fields |= {'adapter_len': 3, 'adapter_layers': 1, 'target_modules': 'self_attn'}
        name = f'base_model.model.model.layers.{config.num_decoder_layers - 1}.self_attn'
        shapes = {f'{name}.adaption_prompt': (1, 3, config.emb_dim), f'{name}.adaption_gate': (1,)}
    else:
        fields |= {'num_virtual_tokens': 3, 'num_transformer_submodules': 1}
        width = 2 * config.num_decoder_layers * config.kv_heads * config.head_dim
        shapes = {'prompt_embeddings': (3, width if kind == 'PREFIX_TUNING' else config.emb_dim)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    folder.mkdir()
    write_arrays(folder / peft.WEIGHTS, arrays)
    (folder / peft.CONFIG).write_text(json.dumps(fields))
    return fields, arrays


@pytest.mark.parametrize('kind', TYPES)
def test_there_and_back_is_the_same_file(kind, base, tmp_path):
    config = checkpoints.read_description(base).model
    fields, arrays = written_by_hand(tmp_path / 'theirs', kind, config)
    convert.main(str(tmp_path / 'theirs'), str(tmp_path / 'ours'), 'peft', 't5flan', base=str(base))
    shutil.copytree(tmp_path / 'ours', tmp_path / 'without')
    (tmp_path / 'without' / peft.CONFIG).unlink()  # the configuration is then written from our settings
    for folder in ('ours', 'without'):
        back = tmp_path / f'{folder} back'
        convert.main(str(tmp_path / folder), str(back), 't5flan', 'peft')
        again = read_arrays(back / peft.WEIGHTS)
        assert again.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(again[name], array)
        assert json.loads((back / peft.CONFIG).read_text()).items() >= fields.items()


@pytest.mark.parametrize('change', ['layers', 'tokens', 'no tokens', 'encoder-decoder'])
def test_an_adapter_that_does_not_fit_is_one_clear_line(change, base, tmp_path, shared):
    config = checkpoints.read_description(base).model
    kind = 'PREFIX_TUNING' if 'tokens' in change else 'ADAPTION_PROMPT'
    fields, _ = written_by_hand(tmp_path / 'theirs', kind, config)
    changed = {'tokens': {'num_virtual_tokens': 0}, 'no tokens': {'num_virtual_tokens': None}}
    changed = (changed | {'layers': {'adapter_layers': 99}}).get(change, {})
    (tmp_path / 'theirs' / peft.CONFIG).write_text(json.dumps(fields | changed))
    if change == 'encoder-decoder':
        convert.write(convert.read(shared / 'fixtures' / 'hf' / 't5_v1_1', 'hf'), tmp_path / 't5', 't5flan')
        base = tmp_path / 't5'
    words = {'layers': r'LlamaAdapter.layers=99, but the decoder has \d+ layers', 'tokens': 'PrefixTuning.tokens=0'}
    words['no tokens'] = 'adapter_config.json lacks num_virtual_tokens'
    with pytest.raises(UserError, match=words.get(change, 'ADAPTION_PROMPT for decoder-only models, but the base is')):
        convert.main(str(tmp_path / 'theirs'), str(tmp_path / 'ours'), 'peft', 't5flan', base=str(base))


@pytest.mark.slow
@pytest.mark.parametrize('kind', [*TYPES, 'P_TUNING LSTM', 'PREFIX_TUNING projection'])
def test_outputs_are_pefts(kind, base, tmp_path, shared, peft_library):
    """Of a decoder-only model: logits and greedy tokens, and PEFT reads what is written back."""
    library, torch = peft_library, pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    source = shared / 'fixtures' / 'hf' / 'llama'
    kind, _, how = kind.partition(' ')
    virtual = dict(task_type='CAUSAL_LM', num_virtual_tokens=4)
    configs = {
        'PROMPT_TUNING': lambda: library.PromptTuningConfig(**virtual),
        'P_TUNING': lambda: library.PromptEncoderConfig(
            **virtual, encoder_reparameterization_type=how or 'MLP', encoder_hidden_size=12
        ),
        'PREFIX_TUNING': lambda: library.PrefixTuningConfig(**virtual, prefix_projection=bool(how)),
        'ADAPTION_PROMPT': lambda: library.AdaptionPromptConfig(task_type='CAUSAL_LM', adapter_len=4, adapter_layers=1),
    }
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation='eager')
    torch.manual_seed(0)
    model = library.get_peft_model(load(), configs[kind]()).eval()
    for name, parameter in model.named_parameters():
        if 'prompt' in name or 'adaption' in name:
            torch.nn.init.normal_(parameter.data, std=0.5)
    model.save_pretrained(tmp_path / 'theirs')
    tokens = torch.tensor([[1, 5, 9, 30, 7, 8], [1, 40, 41, 3, 60, 2]])

    @torch.no_grad()
    def outputs(model):
        """Logits and greedy tokens, by forward passes, from which PEFT's cached `generate` differs (transformers 5)."""
        logits, row = model(input_ids=tokens).logits.numpy()[:, -tokens.shape[1] :], tokens
        for _ in range(6):
            row = torch.cat([row, model(input_ids=row).logits[:, -1:].argmax(-1)], dim=1)
        return logits, row.numpy()[:, -6:]

    expected, greedy = outputs(model)
    convert.main(str(tmp_path / 'theirs'), str(tmp_path / 'ours'), 'peft', 't5flan', base=str(base))
    ours = t5flan.load(tmp_path / 'ours')
    batch = {'decoder_input_tokens': tokens.numpy().astype(np.int32)}
    np.testing.assert_allclose(ours.logits(batch), expected, atol=2e-4, rtol=0)
    found = ours.generate_ids(tokens.tolist(), 6, started=True, end_id=ours.vocabulary.vocab_size + 1)
    assert [one.tokens.tolist() for (one,) in found] == greedy.tolist()

    (tmp_path / 'ours' / peft.CONFIG).unlink()
    convert.main(str(tmp_path / 'ours'), str(tmp_path / 'back'), 't5flan', 'peft')
    again, _ = outputs(library.PeftModel.from_pretrained(load(), tmp_path / 'back').eval())
    np.testing.assert_allclose(again, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize('encoder', ['mlp', 'lstm'])
def test_the_network_of_p_tuning_is_written_as_vectors_and_is_pefts(encoder, base, tmp_path, peft_library):
    """With PEFT's network, filled with our parameters."""
    library, torch = peft_library, pytest.importorskip('torch')
    config = checkpoints.read_description(base).model
    settings = PTuning(4, encoder, hidden_size=12)
    random = np.random.default_rng(0)
    shapes = adapters.adapter_arrays(adapter_folder.abstract_adapted(config, settings))
    arrays = {name: random.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}
    theirs = library.PromptEncoder(
        library.PromptEncoderConfig(
            num_virtual_tokens=4,
            token_dim=config.emb_dim,
            num_transformer_submodules=1,
            encoder_reparameterization_type=encoder.upper(),
            encoder_hidden_size=12,
        )
    )
    state = {'embedding.weight': arrays['prompt/embedding']}
    for i in range(2 if encoder == 'lstm' else 3):
        for name in ('kernel', 'bias'):
            state[f'mlp_head.{2 * i}.{"weight" if name == "kernel" else name}'] = arrays[f'prompt/dense_{i}/{name}'].T
    for i in range(2 if encoder == 'lstm' else 0):
        for d, suffix in enumerate(('', '_reverse')):
            of = lambda part, i=i, d=d: arrays[f'prompt/lstm_{i}/{part}'][d].T
            state[f'lstm_head.weight_ih_l{i}{suffix}'] = of('input_kernel')
            state[f'lstm_head.weight_hh_l{i}{suffix}'] = of('hidden_kernel')
            state[f'lstm_head.bias_ih_l{i}{suffix}'] = of('bias')
            state[f'lstm_head.bias_hh_l{i}{suffix}'] = np.zeros_like(of('bias'))
    theirs.load_state_dict({name: torch.tensor(np.ascontiguousarray(x)) for name, x in state.items()})
    expected = theirs(torch.arange(4)).detach().numpy()
    (tmp_path / 'ours').mkdir()
    adapter_folder.write(tmp_path / 'ours', str(base), settings, arrays, {})
    convert.main(str(tmp_path / 'ours'), str(tmp_path / 'back'), 't5flan', 'peft')
    found = read_arrays(tmp_path / 'back' / peft.WEIGHTS)['prompt_embeddings']
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.slow
def test_the_network_of_a_prefix_is_written_as_keys_and_values_and_is_pefts(base, tmp_path, peft_library):
    """With PEFT's network, filled with our parameters."""
    library, torch = peft_library, pytest.importorskip('torch')
    config = checkpoints.read_description(base).model
    settings = PrefixTuning(4, projection_size=12)
    random = np.random.default_rng(0)
    shapes = adapters.adapter_arrays(adapter_folder.abstract_adapted(config, settings))
    arrays = {name: random.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}
    theirs = library.PrefixEncoder(
        library.PrefixTuningConfig(
            num_virtual_tokens=4,
            token_dim=config.kv_heads * config.head_dim,
            num_layers=config.num_decoder_layers,
            encoder_hidden_size=12,
            prefix_projection=True,
        )
    )
    for i, layer in enumerate((theirs.transform[0], theirs.transform[2])):
        kernel, bias = (arrays[f'decoder/prefix/dense_{i}/{part}'] for part in ('kernel', 'bias'))
        layer.weight = torch.nn.Parameter(torch.tensor(np.ascontiguousarray(kernel.T)))
        layer.bias = torch.nn.Parameter(torch.tensor(bias))
    expected = theirs.transform(torch.tensor(arrays['decoder/prefix/embedding'])).detach().numpy()
    (tmp_path / 'ours').mkdir()
    adapter_folder.write(tmp_path / 'ours', str(base), settings, arrays, {})
    convert.main(str(tmp_path / 'ours'), str(tmp_path / 'theirs'), 't5flan', 'peft')
    found = read_arrays(tmp_path / 'theirs' / peft.WEIGHTS)['prompt_embeddings']
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
