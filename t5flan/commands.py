"""The commands: what each takes and what it runs.

A command reads flags and settings before it imports JAX or TensorFlow, so that `--help` and mistakes answer at once.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5flan.arguments import Command, Flag, words
from t5flan.errors import UsageError, UserError

JSON = Flag('--json', 'also write the table to FILE as JSON', 'FILE')
SKIP_BROKEN = Flag('--skip_broken', 'leave out tasks that cannot be loaded, and say which and why', type=bool)
CHECKPOINT = Flag('--checkpoint', 'the workdir of a `t5flan train` run, or one of its steps: DIR/checkpoints/1000', 'DIR', required=True)


def import_tensorflow() -> None:
    """Imports TensorFlow without its start-up notes (they come before its log level is read) and keeps it off the GPUs.

    TensorFlow reads data here; a GPU's memory is JAX's.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow as tf
            import tensorflow_text  # noqa: F401  SeqIO's, as talkative

            tf.config.set_visible_devices([], 'GPU')
        except BaseException:
            notes.seek(0)
            os.write(screen, notes.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def train(arguments: argparse.Namespace) -> None:
    """Trains, or goes on where the workdir stopped, with its own settings where no gin file is given."""
    from t5flan import config
    from t5flan.data.config import DataConfig
    from t5flan.models.config import ModelConfig
    from t5flan.training.config import (CheckpointConfig, EvaluationConfig, LossConfig, MeshConfig, OptimizerConfig,
                                        RunConfig)

    files = arguments.gin_file
    workdir = arguments.workdir.rstrip('/') or '/'
    if not files and config.exists(f'{workdir}/config.gin'):
        files = [f'{workdir}/config.gin']
    if not files and not arguments.gin:
        raise UsageError(f'{workdir} holds no run to go on with, and no settings are given: name a run file, as '
                         '--gin_file=examples/tiny_stdlib_pretrain (see `t5flan train --help`)')
    kinds = {'model': ModelConfig, 'data': DataConfig, 'run': RunConfig, 'optimizer': OptimizerConfig, 'loss': LossConfig,
             'mesh': MeshConfig, 'checkpoints': CheckpointConfig, 'evaluation': EvaluationConfig}
    settings = config.parse(files, [*arguments.gin, *_skip_broken(arguments)])
    _take_from_checkpoint(settings, workdir, list(kinds.values()))
    values = dict(zip(kinds, settings.read_all(list(kinds.values()), 'train'), strict=True))

    import_tensorflow()
    from t5flan.tasks import register_all
    from t5flan.train import train as run

    register_all(values['data'])
    run(workdir, **values, gin=settings.operative_config())


def _take_from_checkpoint(settings: Any, workdir: str, kinds: Sequence[type]) -> None:
    """Model, format and vocabulary of this workdir, or of the folder that the run starts from, where gin gives none.

    Raises:
      UserError: the folder to start from is none, or is a setting that is not given.
    """
    from t5flan import config
    from t5flan.data.config import DataConfig
    from t5flan.models.config import ModelConfig
    from t5flan.training.config import CheckpointConfig

    has_model = settings.gives(ModelConfig, 'architecture')
    found = config.checkpoint_settings(workdir)
    if found is None:
        if not settings.can_read(CheckpointConfig):  # the rest will come from the folder that is not given
            settings.offer(DataConfig, {'vocabulary': 'that of the folder'}, '')
            settings.read_all([kind for kind in kinds if kind is not ModelConfig or has_model], 'train')
        source = settings.read(CheckpointConfig).initialize_from
        if source is None:
            return
        found = config.checkpoint_settings(source)
        if found is None:
            raise UserError(f'CheckpointConfig.initialize_from={source} is no checkpoint folder (it has no t5flan.json): '
                            'set it to the workdir of a `t5flan train` run')
    path, values = found
    for kind, fields in values.items():
        if kind is not ModelConfig or not has_model:  # a model is taken whole or not at all
            settings.offer(kind, fields, path)


def quickstart(arguments: argparse.Namespace) -> None:
    """From nothing to a model that follows instructions."""
    import_tensorflow()
    from t5flan.quickstart import main as run
    from t5flan.tasks import register_all

    register_all()
    run(arguments.workdir, arguments.examples)


def mixture(arguments: argparse.Namespace) -> None:
    """Shows what a task or mixture holds; without a name, which there are."""
    from t5flan import config
    from t5flan.data.config import DataConfig

    # A name is shown by itself, whatever the run file mixes with it or after it.
    named = [f'DataConfig.mixture={arguments.name}', 'DataConfig.stages=[]', 'DataConfig.mixed_in={}'] if arguments.name else []
    settings = config.parse(arguments.gin_file, [*arguments.gin, *named, *_skip_broken(arguments)])
    shown = {'mixture': '-', 'batch_size': 1, 'feature_lengths': {'inputs': 512, 'targets': 512}, 'vocabulary': 'bytes'}
    is_list = not settings.gives(DataConfig, 'mixture')
    if not settings.gives(DataConfig, 'vocabulary'):
        shown['mode_tokens'] = ('[NLU]', '[NLG]', '[S2S]')
    settings.offer(DataConfig, shown, 't5flan mixture')
    data = settings.read(DataConfig, 'mixture')

    import_tensorflow()
    from t5flan.data.describe import main as describe
    from t5flan.tasks import register_all, ul2
    from t5flan.tasks.text import STDLIB_DOCS

    register_all(data)
    if data.mixture in {**ul2.denoisers(), **data.denoisers}:  # of no corpus: shown on the text that is always there
        data = dataclasses.replace(data, mixture=f'{STDLIB_DOCS}_{data.mixture}')
    if is_list:
        _list_mixtures(arguments.json)
    else:
        describe(data, arguments.json, arguments.sample, arguments.examples)


def cache(arguments: argparse.Namespace) -> None:
    """Prepares a task's or mixture's records offline."""
    from t5flan import config
    from t5flan.data.config import DataConfig

    settings = config.parse(arguments.gin_file, [*arguments.gin, f'DataConfig.mixture={arguments.name}', 'DataConfig.cache=None',
                                                 'DataConfig.stages=[]', 'DataConfig.mixed_in={}'])
    settings.offer(DataConfig, {'batch_size': 1, 'feature_lengths': {'inputs': 512, 'targets': 512}}, 't5flan cache')
    data = settings.read(DataConfig, 'cache')

    import_tensorflow()
    from t5flan.cache import main as run
    from t5flan.tasks import register_all

    register_all(data)
    run(data, arguments.name, arguments.output, arguments.json, prepare=register_all, splits=arguments.splits or (),
        overwrite=arguments.overwrite, pipeline_options=arguments.pipeline_options or ())


def _skip_broken(arguments: argparse.Namespace) -> list[str]:
    return ['DataConfig.skip_broken=True'] if arguments.skip_broken else []


def evaluate(arguments: argparse.Namespace) -> None:
    """Measures a checkpoint on held-out splits; tasks of its own files and modules are known again."""
    from t5flan import config
    from t5flan.data.config import DataConfig, InstructionConfig

    found = config.checkpoint_settings(arguments.checkpoint)
    if found is None:
        raise UserError(f'{arguments.checkpoint} is no checkpoint folder (it has no t5flan.json): '
                        'set --checkpoint to the workdir of a `t5flan train` run')
    saved = found[0].replace('t5flan.json', 'config.gin')
    settings = config.parse([*([saved] if config.exists(saved) else []), *arguments.gin_file], arguments.gin)
    data = settings.read(DataConfig) if settings.can_read(DataConfig) else None
    tasks = arguments.tasks or ((data.mixture,) if data else ())
    if not tasks:
        raise UsageError('no task is named: write --tasks=NAME,NAME (`t5flan mixture` lists them)')

    import_tensorflow()
    from t5flan.evaluate import evaluate as run
    from t5flan.tasks import register_all

    register_all(data)
    run(arguments.checkpoint, tasks, split=arguments.split, limit=arguments.limit, predictions=arguments.predictions,
        json_file=arguments.json, instructions=data.instructions if data else settings.read(InstructionConfig),
        **_decoding(arguments))


def rationales(arguments: argparse.Namespace) -> None:
    """Samples a model's rationales for a task and writes those that are kept; tasks of its own files are known again."""
    from t5flan import config
    from t5flan.data.config import DataConfig

    found = config.checkpoint_settings(arguments.checkpoint)
    saved = found[0].replace('t5flan.json', 'config.gin') if found else ''
    settings = config.parse([*([saved] if saved and config.exists(saved) else []), *arguments.gin_file], arguments.gin)
    settings.offer(DataConfig, {'mixture': arguments.task, 'batch_size': 1, 'feature_lengths': {'inputs': 512, 'targets': 512},
                                'vocabulary': 'bytes'}, 't5flan rationales')
    data = settings.read(DataConfig, 'rationales')

    import_tensorflow()
    from t5flan.rationales import rationales as run
    from t5flan.tasks import register_all
    from t5flan.tasks.cot import answer_words

    register_all(data)
    run(arguments.checkpoint, arguments.task, arguments.output, samples=arguments.samples, keep=arguments.keep,
        split=arguments.split, limit=arguments.limit, each=arguments.each, agreement=arguments.agreement,
        trigger=arguments.trigger, answer_words=answer_words(), json_file=arguments.json, **_decoding(arguments))


def infer(arguments: argparse.Namespace) -> None:
    """Continues prompts, or every row of a file."""
    from t5flan.infer import infer as run

    run(arguments.checkpoint, prompts=arguments.prompt or (), input=arguments.input, output=arguments.output,
        field=arguments.field, control=arguments.control or (), json_file=arguments.json, **_decoding(arguments))


def _decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    return {flag.name[2:]: getattr(arguments, flag.name[2:]) for flag in DECODING}


def report(arguments: argparse.Namespace) -> None:
    """Writes the page of a run."""
    from t5flan.report import report as run

    run(arguments.workdir, arguments.output)


def _list_mixtures(json_path: str | None) -> None:
    import json

    import seqio

    names = {'mixtures': sorted(seqio.MixtureRegistry.names()), 'tasks': sorted(seqio.TaskRegistry.names())}
    for kind, found in names.items():
        print(f'{kind}:', *found, sep='\n  ')
    if json_path:
        Path(json_path).write_text(json.dumps(names, indent=1) + '\n', encoding='utf-8')


def vocabulary(arguments: argparse.Namespace) -> None:
    """Trains a SentencePiece vocabulary."""
    from t5flan.data.vocabulary_training import train_vocabulary

    trained = train_vocabulary(arguments.input, arguments.size, arguments.output, arguments.extra_ids,
                               arguments.mode_tokens, arguments.fields)
    print(f'{arguments.output}: {trained.vocab_size:,} ids; set --gin.VOCABULARY={arguments.output} and '
          f'--gin.ModelConfig.vocab_size={-(-trained.vocab_size // 128) * 128} or more')


def memorization(arguments: argparse.Namespace) -> None:
    """Makes canaries, or tells how much of a text a checkpoint writes down again."""
    import json

    from t5flan.memorization import make_canaries, table
    from t5flan.memorization import memorization as run

    if bool(arguments.make_canaries) == bool(arguments.checkpoint):
        raise UsageError('give either --make_canaries=F.jsonl or --checkpoint=DIR with --input=GLOB')
    if arguments.make_canaries:
        repeats = [int(number) if number.isdigit() else 0 for number in arguments.repeats]
        rows = make_canaries(arguments.make_canaries, repeats, arguments.count, seed=arguments.seed)
        print(f'{arguments.make_canaries}: {rows:,} rows; train with it among TextFiles.train, then probe it with --group=repeats')
        return
    if not arguments.input:
        raise UsageError('--input=GLOB is missing: the text whose continuation is asked for')
    found = run(arguments.checkpoint, arguments.input, field=arguments.field, unit=arguments.unit, group=arguments.group,
                prefix=arguments.prefix, length=arguments.length, limit=arguments.limit, control=arguments.control or (),
                step=arguments.step, batch_size=arguments.batch_size)
    print(*table(found), sep='\n')
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


def deduplicate(arguments: argparse.Namespace) -> None:
    """Writes a corpus without its repetitions, and what was left out and why."""
    import json

    from t5flan.data.deduplication import Rules
    from t5flan.data.deduplication import deduplicate as run

    rules = Rules(arguments.threshold, arguments.ngram, arguments.permutations)
    report = run(arguments.input, arguments.output, arguments.field, arguments.unit, rules)
    for one in report['removed'][:arguments.shown]:
        print(f'{one["text"]}: {one["why"]}, {one["similarity"]:.0%} of {one["of"]}: {one["begins"]!r}')
    path = arguments.json or arguments.output.removesuffix('.jsonl') + '.report.json'
    Path(path).write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    print(f'{arguments.output}: {report["kept"]:,} of {report["texts"]:,} texts, {report["characters_kept"]:,} of '
          f'{report["characters"]:,} characters; left out {report["exact"]:,} exact and {report["near"]:,} near '
          f'repetitions, all of them named in {path}')


def convert(arguments: argparse.Namespace) -> None:
    """Writes a checkpoint of one format as one of another."""
    from t5flan import config
    from t5flan.convert import FORMATS
    from t5flan.convert import main as run
    from t5flan.models.config import ModelConfig

    forms = {name: getattr(arguments, name) for name in ('from', 'to')}
    for name, form in forms.items():
        if form not in FORMATS:
            raise UsageError(f'--{name}={form} is no format: expected one of {", ".join(FORMATS)}')
    if arguments.dtype not in (None, 'float32', 'bfloat16', 'float16'):
        raise UsageError(f'--dtype={arguments.dtype} is not one of float32, bfloat16, float16')
    given = config.parse(arguments.gin_file, arguments.gin)

    def settings(found: dict[str, Any]) -> ModelConfig:
        given.offer(ModelConfig, found, arguments.SRC)
        return given.read(ModelConfig, 'convert')

    def known_models() -> list[ModelConfig]:
        return [config.parse([name]).read(ModelConfig) for name in config.packaged_files() if name.startswith('models/')]

    run(arguments.SRC, arguments.DST, forms['from'], forms['to'], vocabulary=arguments.vocabulary, dtype=arguments.dtype,
        settings=settings, known_models=known_models, allow_nan=arguments.allow_nan, check=arguments.check, logits=arguments.logits)


DECODING = (
    Flag('--step', 'the checkpoint of this step; the latest', 'N', int),
    Flag('--max_new_tokens', 'the longest answer; the length of targets in training', 'N', int),
    Flag('--temperature', '0 takes the likeliest token; above it draws (0)', 'X', float, 0.0),
    Flag('--top_k', 'draws among the K likeliest tokens; 0 among all (0)', 'K', int, 0),
    Flag('--top_p', 'draws among the likeliest tokens that make up this share (1)', 'X', float, 1.0),
    Flag('--seed', 'decides what is drawn (0)', 'N', int, 0),
    Flag('--batch_size', 'rows at a time (32)', 'N', int, 32),
)

SAMPLING = tuple(dataclasses.replace(flag, help=flag.help.replace('(0)', '(0.7)'), default=0.7) if flag.name == '--temperature'
                 else dataclasses.replace(flag, help=flag.help.replace('(32)', '(8)'), default=8) if flag.name == '--batch_size'
                 else flag for flag in DECODING)
"""The same where rationales are drawn."""

COMMANDS: dict[str, Command] = {command.name: command for command in (
    Command('quickstart', 'on any machine, from nothing: pretrains, instructs, evaluates, generates, reports', quickstart,
            example='t5flan quickstart',
            flags=(Flag('--workdir', 'the folder of both runs and the report; an earlier quickstart in it is removed', 'DIR',
                        default='runs/quickstart'),
                   Flag('--examples', 'questions asked of each task (32)', 'N', int, 32))),
    Command('train', 'trains a model, or goes on where DIR stopped', train, gin=True,
            example='t5flan train --workdir=runs/mine --gin_file=runs/finetune --gin.MIXTURE=practice '
                    '--gin.INITIALIZE_FROM=runs/pretrain',
            flags=(Flag('--workdir', 'the folder of the run: checkpoints, metrics, settings; local or gs://', 'DIR', required=True),
                   SKIP_BROKEN)),
    Command('evaluate', 'measures a checkpoint on held-out splits: metrics as a table and as JSON', evaluate, gin=True,
            example='t5flan evaluate --checkpoint=runs/mine --tasks=practice --limit=50',
            flags=(CHECKPOINT, Flag('--tasks', 'tasks and mixtures, with commas between; what the run was trained on', 'A,B', words),
                   Flag('--split', 'of the tasks (validation)', 'NAME', default='validation'),
                   Flag('--limit', 'the first so many examples of each task; all', 'N', int), *DECODING,
                   Flag('--predictions', 'also write every row to FILE.jsonl', 'FILE'), JSON)),
    Command('infer', 'writes what a model answers to prompts, or to every row of a file; goes on where it was stopped', infer,
            example='t5flan infer --checkpoint=runs/mine --prompt="What is 3 plus 4?"',
            flags=(CHECKPOINT, Flag('--prompt', 'a text to answer; may be given several times', 'TEXT', many=True),
                   Flag('--input', 'a .jsonl, or any text file, a prompt a line', 'FILE'),
                   Flag('--output', 'a .jsonl: the rows of the input with their predictions', 'FILE'),
                   Flag('--field', 'of a .jsonl, that holds the prompt (inputs)', 'NAME', default='inputs'),
                   Flag('--control', "a control or mode token in front of every prompt, as '[TOX_LOW]'; may be given several times",
                        'TOKEN', many=True), *DECODING, JSON)),
    Command('rationales', 'samples rationales with a checkpoint, keeps those that reach the right answer: a new file for DataConfig.cot',
            rationales, gin=True,
            example='t5flan rationales --checkpoint=runs/mine --gin.DataConfig.cot=flan_v2/cot_data --task=cot_gsm8k '
                    '--samples=8 --keep=right --output=gsm8k_sampled.tsv',
            flags=(CHECKPOINT, Flag('--task', 'whose questions are asked', 'NAME', required=True),
                   Flag('--output', 'a .tsv or .jsonl; its provenance is written beside it', 'FILE', required=True),
                   Flag('--samples', 'rationales drawn for each question (8)', 'N', int, 8),
                   Flag('--keep', "'right': the answer is the file's; 'vote': it is that of most draws (right)", 'RULE', default='right'),
                   Flag('--agreement', 'for --keep=vote, the least share of the draws (0.5)', 'X', float, 0.5),
                   Flag('--each', 'kept of a question at most (1)', 'N', int, 1),
                   Flag('--split', 'of the task (train)', 'NAME', default='train'),
                   Flag('--limit', 'the first so many questions; all', 'N', int),
                   Flag('--trigger', "asks for a rationale; '' adds nothing (InstructionConfig's first, where the task does not ask)", 'TEXT'),
                   *SAMPLING, JSON)),
    Command('report', 'writes one self-contained HTML page of a run: curves, tables, sample predictions', report,
            example='t5flan report runs/mine',
            flags=(Flag('workdir', 'of a `t5flan train` run', 'WORKDIR', required=True),
                   Flag('--output', 'the page; WORKDIR/report.html', 'FILE'))),
    Command('mixture', "shows a task's or mixture's rates, caps, lengths, variants and examples, before anything is trained", mixture,
            gin=True, example='t5flan mixture practice',
            flags=(Flag('name', 'of a task or mixture; without it, all names are listed', 'NAME'),
                   Flag('--sample', 'examples of each task that are measured (100; fewer of many tasks; 0 reads nothing)', 'N', int),
                   Flag('--examples', 'examples shown (3; of a mixture of denoisers one of each)', 'N', int), SKIP_BROKEN, JSON)),
    Command('cache', "prepares a task's records offline (tokenized), by SeqIO's Beam pipeline: DataConfig.cache then reads them", cache, gin=True,
            example='t5flan cache c4_ul2 --output=/data/cache --gin_file=runs/ul2 --gin.VOCABULARY=spiece.model',
            flags=(Flag('name', 'of a task, or of a mixture of such', 'NAME', required=True),
                   Flag('--output', 'the folder to write', 'DIR', required=True),
                   Flag('--splits', 'with commas between; all', 'A,B', words),
                   Flag('--pipeline_options', "Beam's, as --pipeline_options=--runner=DataflowRunner; may be given several times (runs "
                        'on this machine)', 'OPTION', many=True),
                   Flag('--overwrite', 'makes it again where it is there', type=bool), JSON)),
    Command('convert', 'writes a checkpoint of Hugging Face, T5X or t5flan as one of another', convert, gin=True,
            example='t5flan convert --from=hf --to=t5flan flan-t5-small runs/flan-t5-small',
            flags=(Flag('SRC', 'a folder of save_pretrained, a checkpoint of T5X (also gs://), or a workdir', 'SRC', required=True),
                   Flag('DST', 'the new folder', 'DST', required=True),
                   Flag('--from', 'the format of SRC: hf, t5x or t5flan', 'FORMAT', required=True),
                   Flag('--to', 'the format of DST', 'FORMAT', required=True),
                   Flag('--vocabulary', "a SentencePiece model, or 'bytes', where SRC brings none", 'F.model'),
                   Flag('--dtype', 'rounds to float32, bfloat16 or float16; each array keeps its own', 'NAME'),
                   Flag('--check', 'afterwards reads both and compares every number; alone if DST is there already', type=bool),
                   Flag('--logits', "also runs transformers' model and ours (needs torch and transformers)", type=bool),
                   Flag('--allow_nan', 'copies NaN too', type=bool))),
    Command('deduplicate', 'writes a text corpus without exact and near repetitions, and a report of what was left out', deduplicate,
            example="t5flan deduplicate --input='crawl/*.jsonl' --output=crawl_once.jsonl",
            flags=(Flag('--input', '.txt or .jsonl files; may be given several times', 'GLOB', required=True, many=True),
                   Flag('--output', 'a .jsonl of the rows that are kept', 'F.jsonl', required=True),
                   Flag('--field', 'of .jsonl files, that holds the text (text)', 'NAME', default='text'),
                   Flag('--unit', 'what is one text in a .txt file: document, paragraph or line (document)', 'UNIT', default='document'),
                   Flag('--threshold', 'share of n-grams in common that makes a near repetition; 1: exact ones alone (0.8)', 'X', float,
                        0.8),
                   Flag('--ngram', 'words of an n-gram (5)', 'N', int, 5),
                   Flag('--permutations', 'of MinHash; more is more exact and slower (128)', 'N', int, 128),
                   Flag('--shown', 'repetitions printed; the report has all (10)', 'N', int, 10),
                   Flag('--json', 'the report; beside the output as .report.json', 'FILE'))),
    Command('memorization', 'tells how much of a text a model continues word for word; makes canaries to plant', memorization,
            example="t5flan memorization --checkpoint=runs/mine --input='books/*.txt' --control='[S2S]'",
            flags=(Flag('--checkpoint', 'the workdir of a run, or one of its steps', 'DIR'),
                   Flag('--input', '.txt or .jsonl files, seen in training or not; may be given several times', 'GLOB', many=True),
                   Flag('--field', 'of .jsonl files, that holds the text (text)', 'NAME', default='text'),
                   Flag('--unit', 'what is one text in a .txt file: document, paragraph or line (paragraph)', 'UNIT',
                        default='paragraph'),
                   Flag('--group', 'a field of .jsonl files: results for each of its values', 'NAME'),
                   Flag('--prefix', 'tokens shown (50)', 'N', int, 50), Flag('--length', 'tokens to go on with (50)', 'N', int, 50),
                   Flag('--limit', 'texts at most (500)', 'N', int, 500),
                   Flag('--control', "a mode or control token in front, as '[S2S]'; may be given several times", 'TOKEN', many=True),
                   Flag('--step', 'the checkpoint of this step; the latest', 'N', int),
                   Flag('--batch_size', 'rows at a time (32)', 'N', int, 32),
                   Flag('--make_canaries', 'instead: writes random texts to be planted in training text', 'F.jsonl'),
                   Flag('--repeats', 'of canaries, how often each is written (1,10,100)', 'A,B', words, ('1', '10', '100')),
                   Flag('--count', 'canaries for each number of repeats (20)', 'N', int, 20),
                   Flag('--seed', 'decides the canaries (0)', 'N', int, 0), JSON)),
    Command('vocabulary', 'trains a SentencePiece vocabulary with sentinels and mode tokens', vocabulary,
            example="t5flan vocabulary --input='books/*.txt' --size=32000 --output=books.model",
            flags=(Flag('--input', '.txt or .jsonl files; may be given several times', 'GLOB', required=True, many=True),
                   Flag('--size', 'all ids, sentinels and mode tokens among them', 'N', int, required=True),
                   Flag('--output', 'the vocabulary; its description is written beside it as .json', 'F.model', required=True),
                   Flag('--extra_ids', 'sentinels (100)', 'N', int, 100),
                   Flag('--mode_tokens', 'with commas between ([NLU],[NLG],[S2S])', 'A,B', words, ('[NLU]', '[NLG]', '[S2S]')),
                   Flag('--fields', 'of .jsonl files, with commas between (text,inputs,targets)', 'A,B', words,
                        ('text', 'inputs', 'targets')))),
)}
