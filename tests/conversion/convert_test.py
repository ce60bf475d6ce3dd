"""`t5flan convert`: complete or not at all, nothing overwritten, one clear line for each mistake, and its notes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import t5flan
from t5flan.__main__ import main
from t5flan.conversion import convert, names
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.language_model import load
from tests.saved_model import LENGTHS, byte_model, save_folder
from tests.vocabulary import small_vocabulary_model

GOLDEN = Path(__file__).parent / 'golden'


@pytest.fixture
def run(capsys):
    """Runs `t5flan convert` and returns (exit code, stdout, stderr)."""

    def one(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(['convert', *map(str, argv)])
        return code, *capsys.readouterr()

    return one


def with_numbers(change):
    """The golden T5 1.1 with arrays changed by `change(shape, layer, array)`."""
    source = convert.read(GOLDEN / 't5_1_1', 'hf')
    return dataclasses.replace(source, read=lambda shape, layer: change(shape, layer, source.read(shape, layer)))


def test_from_the_command_line_there_and_back(run, tmp_path):
    code, out, err = run('--from=hf', '--to=t5flan', GOLDEN / 'mt5', tmp_path / 'own', '--check')
    assert (code, err) == (0, '')
    assert out.startswith(f'{tmp_path}/own: ') and 'parameters' in out and 'has no tokenizer' in out
    assert f'checked: {tmp_path}/own has the same numbers as {GOLDEN}/mt5' in out
    assert run('--from=t5flan', '--to=hf', tmp_path / 'own', tmp_path / 'back')[0] == 0
    code, out, _ = run('--from=hf', '--to=hf', '--check', GOLDEN / 'mt5', tmp_path / 'back')  # exists: only compared
    assert code == 0 and 'checked' in out and 'parameters' not in out
    assert {file.name for file in tmp_path.iterdir()} == {'own', 'back'}
    assert json.loads((tmp_path / 'back' / 'config.json').read_text())['model_type'] == 'mt5'


def test_settings_change_how_a_model_runs_but_not_the_model(run, tmp_path):
    code, _, _ = run('--from=hf', '--to=t5flan', GOLDEN / 't5_1_1', tmp_path / 'x', '--gin.ModelConfig.dtype=bfloat16')
    assert code == 0
    assert json.loads((tmp_path / 'x' / 't5flan.json').read_text())['model']['dtype'] == 'bfloat16'
    code, _, err = run('--from=hf', '--to=t5flan', GOLDEN / 't5_1_1', tmp_path / 'y', '--gin.ModelConfig.mlp_dim=25')
    assert code == 1 and '--gin.ModelConfig.mlp_dim=25, but the model of' in err and 'has 24. Remove it' in err
    bare = tmp_path / 'bare'
    convert.write(convert.read(GOLDEN / 'ul2', 'hf'), bare, 't5x')
    (bare / 'config.gin').unlink()
    code, out, _ = run(
        '--from=t5x', '--to=t5flan', bare, tmp_path / 'z', "--gin.ModelConfig.mlp_activations=('silu', 'linear')"
    )
    assert code == 0 and 'does not say its activations' not in out
    assert t5flan.load(tmp_path / 'z').config.mlp_activations == ('silu', 'linear')


def test_dtype_rounds(run, tmp_path):
    assert run('--from=hf', '--to=hf', GOLDEN / 't5_1_1', tmp_path / 'x', '--dtype=bfloat16', '--check')[0] == 0
    assert {dtype.name for dtype in convert.read(tmp_path / 'x', 'hf').dtypes.values()} == {'bfloat16'}
    code, _, err = run('--from=hf', '--to=hf', GOLDEN / 't5_1_1', tmp_path / 'y', '--dtype=int8')
    assert code == 2 and '--dtype=int8' in err and 'float32, bfloat16, float16' in err


@pytest.mark.parametrize(
    'argv, code, message',
    [
        (['--from=hf', '--to=onnx', 'a', 'b'], 2, '--to=onnx is not one of hf, t5x, t5flan'),
        (['--from=hf', '--to=gguf', 'a', 'b'], 2, '--to=gguf is not one of hf, t5x, t5flan, peft'),
        (['--from=gguf', '--to=hf', 'a', 'b'], 1, 'a does not exist. Give a GGUF file'),
        (['--from=hf', 'a', 'b'], 2, 'required: --to'),
        (['--from=hf', '--to=t5flan', 'a'], 2, 'required: DST'),
        (['--from=hf', '--to=t5flan', '/nowhere', 'b'], 1, '/nowhere is not a folder'),
        (['--from=t5x', '--to=t5flan', '/nowhere', 'b'], 1, '/nowhere does not exist'),
        (['--from=t5flan', '--to=hf', '/nowhere', 'b'], 1, '/nowhere does not exist; expected the workdir'),
        (
            ['--from=hf', '--to=t5flan', str(GOLDEN / 'umt5'), 's3://bucket/x'],
            1,
            'results are written to a local folder',
        ),
        (['--from=hf', '--to=t5flan', str(GOLDEN / 'umt5'), str(GOLDEN)], 1, 'exists already: nothing is overwritten'),
        (
            ['--from=hf', '--to=t5flan', str(GOLDEN / 'umt5'), 'b', '--vocabulary=/nowhere.model'],
            1,
            'vocabulary /nowhere.model',
        ),
        (['--from=hf', '--to=t5flan', str(GOLDEN / 'umt5'), 'b', '--gin.ModelConfig.layers=2'], 2, 'ModelConfig'),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, argv, code, message):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(*argv)
    assert found == code and err.startswith('t5flan: ') and message in err and err.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('format', convert.FORMATS)
def test_nan_is_refused_by_name_and_nothing_is_left(tmp_path, format):
    def add_nan(shape, layer, array):
        if (shape.name, layer) == ('decoder/layers/mlp/wo/kernel', 1):
            array[3, 4] = np.nan
        return array

    with pytest.raises(UserError, match='layer 1 of decoder/layers/mlp/wo/kernel holds NaN.*--allow_nan'):
        convert.write(with_numbers(add_nan), tmp_path / 'x', format)
    assert list(tmp_path.iterdir()) == []
    convert.write(with_numbers(add_nan), tmp_path / 'x', format, allow_nan=True)
    convert.compare(with_numbers(add_nan), convert.read(tmp_path / 'x', format), 'x')


@pytest.mark.parametrize('format', convert.FORMATS)
def test_a_failure_while_writing_leaves_nothing(tmp_path, format):
    def fail(shape, layer, array):
        if shape.name == 'encoder/layers/mlp/wo/kernel':
            raise OSError(28, 'No space left on device')
        return array

    with pytest.raises(UserError, match='could not be written: No space left on device.*Nothing was left behind'):
        convert.write(with_numbers(fail), tmp_path / 'x', format)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_reported_before_writing(tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(100, 0, 10**6))
    with pytest.raises(UserError, match=r'needs 0\.1 GiB, but .* has 0\.0 GiB free'):
        convert.write(convert.read(GOLDEN / 't5_1_1', 'hf'), tmp_path / 'x', 'hf')


@pytest.mark.parametrize('format', convert.FORMATS)
def test_writing_on_a_full_disk_is_one_line(tmp_path, format):
    """A file-size limit stands in for a full disk: the same error in the same place."""
    code = (
        'import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); '
        'from t5flan.__main__ import main; sys.exit(main(sys.argv[1:]))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, 'convert', '--from=hf', f'--to={format}', GOLDEN / 't5_1_1', tmp_path / 'x'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count('\n') == 1 and 'could not be written' in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_found_and_named(run, tmp_path):
    def change(shape, layer, array):
        if (shape.name, layer) == ('encoder/layers/attention/key/kernel', 1):
            array[0, 0, 0] = -array[0, 0, 0]
        return array

    convert.write(with_numbers(change), tmp_path / 'x', 't5flan')
    code, _, err = run('--from=hf', '--to=t5flan', '--check', GOLDEN / 't5_1_1', tmp_path / 'x')
    assert code == 1 and 'layer 1 of encoder/layers/attention/key/kernel has different numbers' in err
    code, _, err = run('--from=hf', '--to=t5flan', '--check', GOLDEN / 'umt5', tmp_path / 'x')
    assert code == 1 and 'ModelConfig.relative_bias_per_layer is False there, True here' in err


def test_a_converted_folder_generates_text(run, tmp_path):
    small_vocabulary_model(tmp_path / 'small.model')
    big = dataclasses.replace(convert.read(GOLDEN / 't5_1_1', 'hf').config, vocab_size=384)
    source = convert.read(GOLDEN / 't5_1_1', 'hf')

    def read(shape, layer):
        return np.resize(source.read(names.shapes(source.config)[shape.name], layer), shape.one)

    convert.write(dataclasses.replace(source, config=big, read=read), tmp_path / 'hf', 'hf')
    model = None
    for vocabulary in (tmp_path / 'small.model', 'bytes'):
        target = tmp_path / f'own_{os.path.basename(vocabulary)}'
        assert run('--from=hf', '--to=t5flan', tmp_path / 'hf', target, f'--vocabulary={vocabulary}')[0] == 0
        model = t5flan.load(target)
        assert isinstance(model.generate(['The fox'], max_new_tokens=3)[0], str)
    assert run('--from=t5flan', '--to=hf', tmp_path / 'own_small.model', tmp_path / 'back')[0] == 0
    assert convert.read(tmp_path / 'back', 'hf').vocabulary == t5flan.load(tmp_path / 'own_small.model').vocabulary
    silent = tmp_path / 'silent'
    assert run('--from=hf', '--to=t5flan', tmp_path / 'hf', silent)[0] == 0
    with pytest.raises(UserError, match='Convert it again with --vocabulary'):
        t5flan.load(silent).generate(['The fox'], max_new_tokens=3)
    assert len(model.generate_ids([[5, 6]], 3)[0][0].tokens) <= 3


def test_a_training_run_is_converted_and_its_notes_say_what_is_not(tmp_path):
    folder = save_folder(tmp_path / 'run', byte_model())
    source = convert.read(folder, 't5flan')
    assert (source.step, source.feature_lengths) == (8, LENGTHS)
    assert source.notes == ('the optimizer state is not converted',)
    assert convert.read(folder / 'checkpoints' / '4', 't5flan').step == 4
    for format in convert.FORMATS:
        convert.write(source, tmp_path / format, format)
        convert.compare(source, convert.read(tmp_path / format, format), format)
    assert convert.read(tmp_path / 'hf', 'hf').vocabulary == source.vocabulary
    model, made = t5flan.load(folder), t5flan.load(tmp_path / 't5flan')
    assert (made.step, made.feature_lengths, made.vocabulary) == (8, LENGTHS, model.vocabulary)
    assert made.generate(['abc'], max_new_tokens=4) == model.generate(['abc'], max_new_tokens=4)


def test_how_parameters_were_first_drawn_is_no_difference():
    one = convert.read(GOLDEN / 't5_1_1', 'hf')
    other = dataclasses.replace(one, config=dataclasses.replace(one.config, relative_bias_init=36.0))
    convert.compare(other, one, 'x')
    with pytest.raises(UserError, match='ModelConfig.norm_epsilon'):
        convert.compare(dataclasses.replace(one, config=dataclasses.replace(one.config, norm_epsilon=0.1)), one, 'x')


def test_a_hugging_face_folder_is_a_checkpoint_and_converted_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    source = shutil.copytree(GOLDEN / 'llama', tmp_path / 'a model')
    first = convert.as_checkpoint_folder(str(source))
    assert 'converted once' in capsys.readouterr().err and load(first).config.architecture == 'decoder_only'
    assert convert.as_checkpoint_folder(str(source)) == first and not capsys.readouterr().err
    assert convert.as_checkpoint_folder(first) == first
    (source / 'generation_config.json').write_text('{}')
    assert convert.as_checkpoint_folder(str(source)) != first, 'a changed folder is converted again'
    assert convert.as_checkpoint_folder(str(tmp_path)) == str(tmp_path)  # neither: the caller's error names it


def test_a_model_of_the_hub_without_network_or_library_is_one_line(monkeypatch):
    hub = pytest.importorskip('huggingface_hub', reason='the extra hub is not installed')

    def no_network(*_, **__):
        raise OSError('Name or service\nnot known')

    monkeypatch.setattr(hub, 'snapshot_download', no_network)
    with pytest.raises(UserError, match='hf:a/b cannot be downloaded .Name or service not known.*Check') as error:
        convert.as_checkpoint_folder('hf:a/b')
    assert '\n' not in str(error.value)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match=r"hf:a/b needs huggingface_hub: pip install 't5flan\[hub\]'"):
        convert.as_checkpoint_folder('hf:a/b')


def test_a_foreign_vocabulary_in_a_checkpoint_folder_is_refused(tmp_path):
    save_folder(tmp_path / 'own', byte_model(), steps=(1,))
    shutil.rmtree(tmp_path / 'own' / 'vocabulary')
    ByteVocabulary(50).save(tmp_path / 'own' / 'vocabulary')
    with pytest.raises(UserError, match='is not the vocabulary that the model was trained with. Put it back'):
        convert.read(tmp_path / 'own', 't5flan')
    assert convert.read(tmp_path / 'own', 't5flan', 'bytes').vocabulary == ByteVocabulary()
