"""A decoder from Hugging Face through every command: what its folder knows need not be said again."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import t5flan
from t5flan.conversion import convert, names
from t5flan.conversion.checkpoint import Checkpoint
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from t5flan.models.parameters import named_parameters
from tests.models.small_models import small_model
from tests.vocabulary import SYSTEM, bpe_folder, bpe_vocabulary

pytest.importorskip('tokenizers', reason='the extra convert is not installed')
SLOW = pytest.mark.slow
ROWS = [{'inputs': f'{i} and 1', 'targets': str(i + 1)} for i in range(60)]
LLAMA: dict = {
    'vocab_size': 290,
    'num_decoder_layers': 1,
    'mlp_activations': ('silu', 'linear'),
    'parallel_block': False,
    'scale_attention': True,
    'position': 'rope',
    'norm': 'rms',
    'tie_embeddings': False,
    'scale_tied_logits': True,
}
TASK = ['--gin.FileTask.name=decoder_rows', '--gin.MIXTURE=decoder_rows', '--gin.VALIDATION_SHARE=0.2']
LENGTHS = "--gin.FEATURE_LENGTHS={'inputs': 90, 'targets': 10}"


@pytest.fixture(scope='module')
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope='module')
def folder(tmp_path_factory, monkeypatch_module):
    """A folder with `hf`, a tiny Llama with a chat template, `own`, its conversion, and rows.jsonl."""
    folder = tmp_path_factory.mktemp('decoder')
    monkeypatch_module.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
    model = small_model('palm', **LLAMA)
    arrays = {name: np.asarray(array) for name, array in named_parameters(model).items()}
    one = lambda shape, layer: arrays[shape.name] if layer is None else arrays[shape.name][layer]
    dtypes = dict.fromkeys(names.shapes(model.config), np.dtype('float32'))
    vocabulary = bpe_vocabulary(bpe_folder(folder), SYSTEM)
    convert.write(Checkpoint('tiny', model.config, dtypes, one, vocabulary, 'causal_lm'), folder / 'hf', 'hf')
    fields = json.loads((folder / 'hf' / 'config.json').read_text())
    fields |= {'max_position_embeddings': 64, 'pad_token_id': 2, 'eos_token_id': [1, 3]}
    (folder / 'hf' / 'config.json').write_text(json.dumps(fields))
    (folder / 'hf' / 'generation_config.json').write_text('{"max_new_tokens": 7}')
    convert.main(str(folder / 'hf'), str(folder / 'own'), 'hf', 't5flan')
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
    return folder


def train(cli, folder, workdir, *more):
    return cli(
        'train',
        f'--workdir={workdir}',
        '--gin_file=runs/finetune_file',
        f'--gin.TRAIN_FILE={folder}/rows.jsonl',
        '--gin.BATCH_SIZE=8',
        *TASK,
        '--gin.STEPS=2',
        '--gin.EvaluationConfig.every=1',
        '--gin.CheckpointConfig.every=1',
        LENGTHS,
        *more,
    )


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    """The workdir of a run from `hf` itself, and what the command printed."""
    from contextlib import redirect_stderr
    from io import StringIO

    from t5flan.__main__ import main

    workdir, err = tmp_path_factory.mktemp('run') / 'run', StringIO()
    with redirect_stderr(err):
        code, _, _ = train(lambda *argv: (main(argv), '', ''), folder, workdir, f'--gin.INITIALIZE_FROM={folder}/hf')
    assert code == 0, err.getvalue()
    return workdir, err.getvalue()


def test_finetuning_takes_the_values_of_a_decoder(trained):
    workdir, _ = trained
    gin = (workdir / 'config.gin').read_text()
    for line in ("OPTIMIZER = 'adamw'", 'LEARNING_RATE = 5e-05', 'DROPOUT = 0.0', 'Z_LOSS = 0.0', 'WARMUP_STEPS = 10'):
        assert line in gin.splitlines()
    assert json.loads((workdir / 't5flan.json').read_text())['data']['instructions.prompt_format'] == 'chat'


def test_values_of_the_user_stay(folder, cli, tmp_path):
    (tmp_path / 'mine.gin').write_text("include 'runs/finetune_file.gin'\nDROPOUT = 0.25\nOPTIMIZER = 'adafactor'\n")
    more = [f'--gin_file={tmp_path}/mine.gin', '--gin.LEARNING_RATE=1e-3', f'--gin.INITIALIZE_FROM={folder}/own']
    code, _, err = train(cli, folder, tmp_path / 'run', *more)
    assert code == 0, err
    gin = (tmp_path / 'run' / 'config.gin').read_text().splitlines()
    assert {'DROPOUT = 0.25', "OPTIMIZER = 'adafactor'", 'LEARNING_RATE = 0.001', 'CLIP_NORM = 1.0'} <= {*gin}


def test_a_run_tells_its_story(trained):
    workdir, err = trained
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows if 'eval/loss' in row] == [0, 1, 2]
    assert 'step 0  eval/loss' in err and '(at step 0 ' in err and 'TFLOP/s' in err and 'GiB' in err
    assert 'rows have 100 tokens, but the model was trained with 64 (max_position_embeddings)' in err
    assert next(row for row in rows if 'peak_memory_gib' in row)['peak_memory_gib'] > 0
    assert json.loads((workdir / 'data.json').read_text())['tasks']['decoder_rows']['examples'] > 0


def test_the_mixture_is_what_train_trains_on(folder, cli, tmp_path):
    given = ['--gin_file=runs/finetune_file', f'--gin.TRAIN_FILE={folder}/rows.jsonl', *TASK[::2], LENGTHS]
    code, out, err = cli(
        'mixture', 'decoder_rows', *given, f'--gin.INITIALIZE_FROM={folder}/hf', f'--json={tmp_path}/m.json'
    )
    assert code == 0, err
    for words in ('vocabulary (290 ids)', 'You are brief', '\n<|im_start|>assistant'):
        assert words in out
    table = json.loads((tmp_path / 'm.json').read_text())
    vocabulary = load_vocabulary(folder / 'own' / 'vocabulary')
    assert table['vocabulary']['size'] == vocabulary.vocab_size == 290
    assert table['tasks'][0]['target_tokens'] < 8, 'an answer is not spelled in bytes with a template around it'


def test_evaluate_needs_only_the_settings_that_the_folder_lacks(folder, trained, cli, tmp_path):
    given = ['--gin_file=runs/finetune_file', f'--gin.TRAIN_FILE={folder}/rows.jsonl', *TASK]
    short = ['--limit=2', '--max_new_tokens=2', '--tasks=decoder_rows', f'--predictions={tmp_path}/rows']
    code, _, err = cli('evaluate', f'--checkpoint={folder}/hf', *given, *short)
    assert code == 0, err
    assert len((tmp_path / 'rows').read_text().splitlines()) == 2, 'the file has the name that is given'
    code, _, err = cli('evaluate', f'--checkpoint={trained[0]}', *short)
    assert code == 0, err
    code, _, err = cli('evaluate', f'--checkpoint={folder}/own', '--gin_file=runs/finetune_file', *short)
    assert code == 2 and 'TRAIN_FILE' in err, 'what is missing is named, not dropped'
    code, _, err = cli('evaluate', f'--checkpoint={trained[0]}', '--tasks=decoder_row')
    assert code == 1 and 'the nearest are decoder_rows' in err


def test_an_export_has_the_files_of_the_import(folder, trained, tmp_path):
    convert.main(str(trained[0]), str(tmp_path / 'hf'), 't5flan', 'hf')
    for name in ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json', 'chat_template.jinja'):
        assert (tmp_path / 'hf' / name).read_bytes() == (folder / 'hf' / name).read_bytes()
    fields = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert fields['max_position_embeddings'] == 64 and fields['pad_token_id'] == 2 and fields['eos_token_id'] == [1, 3]


@pytest.mark.parametrize(
    'run_file',
    [pytest.param('continue_causal_lm', marks=SLOW), pytest.param('continue_prefix_lm', marks=SLOW), 'continue_ul2'],
)
def test_continued_pretraining(folder, cli, tmp_path, run_file):
    source = tmp_path / 'grown'
    argv = ['--from=hf', '--to=t5flan', '--add_sentinels=30', '--add_tokens=[NLU],[NLG],[S2S]']
    assert cli('convert', *argv, f'{folder}/hf', str(source))[0] == 0
    (tmp_path / 'a.txt').write_text('\n'.join(f'The sum of {i} and 1 is {i + 1}.' for i in range(400)))
    lengths = "{'targets': 64}" if run_file == 'continue_causal_lm' else "{'inputs': 32, 'targets': 32}"
    code, _, err = cli(
        'train',
        f'--workdir={tmp_path}/run',
        f'--gin_file=runs/{run_file}',
        f'--gin.INITIALIZE_FROM={source}',
        f'--gin.TEXT_FILES={tmp_path}/a.txt',
        f'--gin.TextFiles.name={run_file}',  # this process knows the tasks of other tests
        f'--gin.MIXTURE={run_file}_{run_file.removeprefix("continue_").replace("ul2", "u_palm")}',
        '--gin.STEPS=1',
        '--gin.BATCH_SIZE=8',
        '--gin.EvaluationConfig.every=0',
        f'--gin.FEATURE_LENGTHS={lengths}',
    )
    assert code == 0, err
    model = t5flan.load(tmp_path / 'run')
    assert model.format == ('causal_lm' if run_file == 'continue_causal_lm' else 'prefix_lm')
    assert model.vocabulary.sentinel_count == 30 and model.config.vocab_size == 384


def test_denoisers_say_how_to_get_their_tokens(folder, cli, tmp_path):
    (tmp_path / 'a.txt').write_text('\n'.join(f'This is text {i}.' for i in range(400)))
    given = [
        '--gin_file=runs/continue_ul2',
        f'--gin.INITIALIZE_FROM={folder}/own',
        f'--gin.TEXT_FILES={tmp_path}/a.txt',
        '--gin.TextFiles.name=without',
        '--gin.MIXTURE=without_u_palm',
    ]
    code, _, err = cli('train', f'--workdir={tmp_path}/run', *given)
    assert code == 1 and '`t5flan convert --add_tokens=A,B`' in err and err.count('\n') == 1
    code, _, err = cli('train', f'--workdir={tmp_path}/run', *given, '--gin.MODE_TOKENS=[]')
    assert code == 1 and '`t5flan convert --add_sentinels=100`' in err and err.count('\n') == 1


def test_new_rows_are_the_mean_of_the_old(folder):
    before = convert.read(folder / 'hf', 'hf')
    after = before.with_added_tokens(['<a>', '<|im_end|>', '<b>'])
    assert after.vocabulary.encode('<b><a>') == [291, 290] and after.config.vocab_size == 384
    for name, axis in (('token_embedder/embedding', 0), ('decoder/logits_dense/kernel', 1)):
        if name not in names.shapes(before.config):
            continue
        old = before.read(names.shapes(before.config)[name], None)
        new = after.read(names.shapes(after.config)[name], None)
        np.testing.assert_array_equal(np.take(new, range(290), axis), old)
        np.testing.assert_allclose(
            np.take(new, range(290, 384), axis), np.repeat(old.mean(axis, keepdims=True), 94, axis)
        )
    few = dataclasses.replace(before, vocabulary=ByteVocabulary(0))  # its new ids have rows already, which were padding
    shape = names.shapes(before.config)['token_embedder/embedding']
    old, new = before.read(shape, None), few.with_added_tokens(['<a>']).read(shape, None)
    assert few.vocabulary.vocab_size == 259 and np.array_equal(np.delete(new, 259, 0), np.delete(old, 259, 0))
    np.testing.assert_allclose(new[259], old.mean(0), rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match='expected a non-empty string'):
        before.with_added_tokens([''])


def test_prompts_follow_the_format_of_the_folder(folder, trained):
    raw, tuned = t5flan.load(folder / 'own'), t5flan.load(trained[0])
    assert raw.prompt_format is None and tuned.prompt_format == 'chat'
    assert raw.input_ids('hi') == raw.vocabulary.encode('hi'), "as for transformers' generate"
    assert (
        raw.in_format().input_ids('hi') == tuned.input_ids('hi') and raw.in_format('newline').input_ids('hi')[-1] != 1
    )
    with pytest.raises(UserError, match='text 1 is None, expected a string'):
        raw.generate(['a', None])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"eos_token_id": 1}', None),
        ('{"eos_token_id": [3, 1]}', None),
        ('{"max_new_tokens": 5}', None),
        ('{"eos_token_id": 77}', 'ends texts with 77'),
        ('{"eos_token_id": [4000]}', 'eos_token_id 4000 is no id of the model, which has 290'),
        ('{"eos_token_id": "</s>"}', "eos_token_id '</s>' is no id"),
        ('[]', 'generation_config.json is not a JSON object'),
    ],
)
def test_a_generation_config_that_contradicts_the_tokenizer(folder, tmp_path, content, message):
    shutil.copytree(folder / 'hf', tmp_path / 'hf')
    (tmp_path / 'hf' / 'generation_config.json').write_text(content)
    try:
        said = [note for note in convert.read(tmp_path / 'hf', 'hf').notes if 'generation_config' in note]
    except UserError as error:
        said = [str(error)]
    assert said == [] if message is None else (len(said) == 1 and message in said[0] and '\n' not in said[0])
