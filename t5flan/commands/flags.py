"""Flags that several commands share, and the settings they change."""

import argparse
import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

from t5flan.commands.arguments import COUNT_FROM_0, Flag, words
from t5flan.decoding.config import GREEDY, Decoding
from t5flan.errors import UsageError, UserError, did_you_mean
from t5flan.files import to_path

if TYPE_CHECKING:
    from t5flan.config.settings import Settings
    from t5flan.data.config import DataConfig
    from t5flan.training.config import LossConfig

JSON = Flag('--json', 'also write the result to FILE as JSON', 'FILE', writes='file')
SKIP_BROKEN = Flag('--skip_broken', 'skip tasks and rows that cannot be used, and report which and why', type=bool)
CHECKPOINT = Flag(
    '--checkpoint',
    'a workdir of `t5flan train`, one of its steps (DIR/checkpoints/1000), a Hugging Face folder, a GGUF file, or '
    'hf:OWNER/NAME',
    'DIR',
    required=True,
)
STEP = Flag('--step', 'the checkpoint of step N (default: the latest)', 'N', COUNT_FROM_0)
CONTROL = Flag(
    '--control', "token put before every prompt, e.g. '[S2S]'; may be given several times", 'TOKEN', many=True
)

ADAPTERS = Flag('--adapters', 'adapters of --checkpoint that share its parameters', 'NAME=DIR,...', words)
ADAPTER = Flag('--adapter', 'the adapter of every row, one of --adapters (default: none)', 'NAME')

PROCESSES = (
    Flag('--coordinator', 'address of the first of several processes (default: T5FLAN_COORDINATOR)', 'HOST:PORT'),
    Flag('--process_count', 'number of processes (default: T5FLAN_PROCESS_COUNT, or as the cluster says)', 'N', int),
    Flag('--process_id', 'which process this is, from 0 (default: T5FLAN_PROCESS_ID)', 'I', int),
    Flag('--connect_timeout', 'seconds to wait for the other processes (default: 300)', 'S', int),
)
"""Which processes a job has."""


def connect(arguments: argparse.Namespace, always: bool = False) -> bool:
    """Connects the processes that PROCESSES or the environment give; returns whether this job may have several.

    Args:
        arguments: of a command with the flags PROCESSES.
        always: connect also without them: the cluster says which processes there are.

    Raises:
        UserError: they cannot be connected.
    """
    from t5flan import processes

    names = ('coordinator', 'process_count', 'process_id')
    given = {name: getattr(arguments, name) for name in names} | {'timeout': arguments.connect_timeout}
    found = processes.from_environment(**given)
    if not (found.is_given or always):
        return False
    processes.connect(found)
    return True


def skip_broken(arguments: argparse.Namespace) -> list[str]:
    """The gin bindings of --skip_broken."""
    return ['DataConfig.skip_broken=True'] if arguments.skip_broken else []


def decoding_flags(default: Decoding = GREEDY) -> tuple[Flag, ...]:
    """--step and a flag for most fields of `Decoding`; `default` applies where neither a flag nor gin sets a field."""
    return (
        STEP,
        Flag('--max_new_tokens', 'limit on new tokens (default: the length of targets in training)', 'N', int),
        Flag('--temperature', f'0 is greedy, above 0 samples (default: {default.temperature:g})', 'X', float),
        Flag('--top_k', f'sample among the K most likely tokens; 0 is all (default: {default.top_k})', 'K', int),
        Flag('--top_p', f'nucleus (top-p) sampling threshold; 1 is all (default: {default.top_p:g})', 'X', float),
        Flag('--seed', f'seed of the samples (default: {default.seed})', 'N', int),
        Flag('--num_beams', f'width of a beam search; 1 is none (default: {default.num_beams})', 'N', int),
        Flag(
            '--length_penalty',
            f'power of the length that a beam is ranked by (default: {default.length_penalty:g})',
            'X',
            float,
        ),
        Flag('--stop', 'end each continuation before this text; may be given several times', 'TEXT', many=True),
        Flag('--batch_size', f'prompts decoded together (default: {default.batch_size})', 'N', int),
    )


def read_decoding(
    settings: 'Settings', arguments: argparse.Namespace, command: str, default: Decoding = GREEDY
) -> Decoding:
    """`default`, changed by gin (`Decoding.temperature = 0.7`), changed by flags (`--temperature=0.7`).

    Raises:
        UsageError: a flag is out of range.
        UserError: a gin setting is out of range.
    """
    settings.set_defaults(Decoding, dataclasses.asdict(default), f't5flan {command}')
    decoding = settings.read(Decoding, command)
    flags = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(Decoding)}
    flags['num_samples'] = getattr(arguments, 'samples', None)
    try:
        decoding = decoding.replace(**{name: value for name, value in flags.items() if value is not None})
    except UserError as error:
        raise UsageError(str(error)) from None
    decoding.require_effect()
    return decoding


def read_adapters(arguments: argparse.Namespace) -> dict[str, str]:
    """Name -> folder of --adapters, of which --adapter is one.

    Raises:
        UsageError: a pair is malformed, or --adapter is unknown.
    """
    found: dict[str, str] = {}
    for given in arguments.adapters or ():
        name, _, folder = given.partition('=')
        if not name or not folder or name in found:
            raise UsageError(f'--adapters={given}, expected NAME=DIR with names that differ, such as de=runs/de')
        found[name] = os.path.expanduser(folder)
    if arguments.adapter is not None and arguments.adapter not in found:
        hint = did_you_mean(arguments.adapter, found) or '.'
        known = f'--adapters has {", ".join(found)}{hint}' if found else 'no --adapters are given.'
        raise UsageError(f'--adapter={arguments.adapter} is not known: {known} Set --adapters=NAME=DIR')
    return found


def own_checkpoint(folder: str) -> str:
    """The folder itself, or the conversion of a Hugging Face folder, a GGUF file or a model of the hub (hf:OWNER/NAME).

    Raises:
        UserError: the model cannot be downloaded or converted.
    """
    is_foreign = os.path.isfile(f'{folder}/config.json') and not os.path.isfile(f'{folder}/t5flan.json')
    if not is_foreign and not folder.startswith('hf:') and not folder.endswith('.gguf'):
        return folder
    from t5flan.conversion.convert import as_checkpoint_folder  # imports JAX

    return as_checkpoint_folder(folder)


def with_own_teacher(loss: 'LossConfig') -> 'LossConfig':
    """The settings with the teacher as a checkpoint folder, see `own_checkpoint`."""
    return loss if loss.teacher is None else dataclasses.replace(loss, teacher=own_checkpoint(loss.teacher))


def files_of_run(data: 'DataConfig', folder: str) -> 'DataConfig':
    """`data` with the relative paths of its files found where the run started, if the current folder lacks them.

    Args:
        data: settings that a run stored.
        folder: the workdir of the run, or one of its steps.
    """
    from t5flan import configurables
    from t5flan.data.records.paths import find_under

    found = configurables.checkpoint_settings(folder)
    if found is None:
        return data
    root = os.path.dirname(found[0])
    started_in = configurables.started_in(found[0])
    folders = [os.path.join(root, one) for one in started_in]
    find = functools.partial(find_under, folders=folders)
    splits = ('train', 'validation', 'test')

    def in_task(task: Any) -> Any:
        given = {split: find(path) for split in splits if (path := getattr(task, split, None)) is not None}
        return dataclasses.replace(task, **given)

    vocabulary = data.vocabulary
    if vocabulary != 'bytes' and '://' not in vocabulary and not os.path.exists(vocabulary):
        vocabulary = f'{root}/vocabulary'  # the run's own copy
    return dataclasses.replace(
        data,
        vocabulary=vocabulary,
        file_tasks=tuple(map(in_task, data.file_tasks)),
        text_files=tuple(map(in_task, data.text_files)),
        cot=tuple(map(find, data.cot or ())),
        chat=tuple(map(find, data.chat or ())),
        natural_instructions=data.natural_instructions and find(data.natural_instructions),
        cache=data.cache and find(data.cache),
    )


def read_data(settings: 'Settings', checkpoint: str, mixture: str, command: str) -> 'DataConfig':
    """The data settings of a command that uses a checkpoint: what gin sets, else what the folder knows.

    Args:
        settings: from `read_run`.
        checkpoint: the checkpoint folder.
        mixture: what `DataConfig.mixture` is where gin does not set it.
        command: for error messages.

    Raises:
        UsageError: a required setting has no value.
    """
    from t5flan import configurables
    from t5flan.data.config import DataConfig
    from t5flan.data.instruction_config import InstructionConfig

    found = configurables.checkpoint_settings(checkpoint)
    assert found is not None, checkpoint  # read_run has checked it
    path, known = found
    settings.set_defaults(DataConfig, known[DataConfig], path)
    lengths = configurables.feature_lengths(path)
    settings.set_defaults(DataConfig, {'mixture': mixture, 'batch_size': 1, 'feature_lengths': lengths}, path)
    settings.set_defaults(InstructionConfig, {'prompt_format': 'auto'}, path)
    return files_of_run(settings.read(DataConfig, command), checkpoint)


def take_from_initial_checkpoint(settings: 'Settings') -> str | None:
    """Takes vocabulary and format from the initial checkpoint, if there is one, where gin does not set them.

    Returns:
        The checkpoint folder.

    Raises:
        UserError: it is not a checkpoint folder.
    """
    from t5flan.data.config import DataConfig
    from t5flan.training.config import CheckpointConfig

    source = settings.read(CheckpointConfig).initialize_from if settings.can_read(CheckpointConfig) else None
    if source is None:
        return None
    path, known = initial_checkpoint(source)
    settings.set_defaults(DataConfig, known[DataConfig], path)
    return os.path.dirname(path)


def initial_checkpoint(source: str) -> tuple[str, dict[type, dict[str, Any]]]:
    """The path of the t5flan.json of an initial checkpoint, and its settings by class.

    Raises:
        UserError: it is not a checkpoint folder.
    """
    from t5flan import configurables

    source = own_checkpoint(source)
    found = configurables.checkpoint_settings(source) if to_path(source).is_dir() else None
    if found is None:
        raise UserError(
            f'CheckpointConfig.initialize_from={source} is not a checkpoint folder (it has no t5flan.json). '
            'Set it to the workdir of a `t5flan train` run, a Hugging Face folder or a GGUF file.'
        )
    return found


def read_run(arguments: argparse.Namespace) -> 'Settings':
    """The settings of the run that made --checkpoint, changed by --gin_file and --gin.

    Raises:
        UserError: the folder is not a checkpoint folder, or a setting is wrong.
    """
    from t5flan import configurables
    from t5flan.config.gin_files import exists

    arguments.checkpoint = own_checkpoint(arguments.checkpoint)
    is_folder = to_path(arguments.checkpoint).is_dir()
    found = configurables.checkpoint_settings(arguments.checkpoint) if is_folder else None
    if found is None:
        raise UserError(
            f'{arguments.checkpoint} is not a checkpoint folder (it has no t5flan.json). '
            'Set --checkpoint to the workdir of a `t5flan train` run.'
        )
    config = found[0].replace('t5flan.json', 'config.gin')
    return configurables.parse(arguments.gin_file, arguments.gin, stored=config if exists(config) else None)
