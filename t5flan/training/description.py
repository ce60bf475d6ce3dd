"""What a run writes about itself into its workdir, and the check that a workdir belongs to the run."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from t5flan.adapters.config import Adapter
from t5flan.data.config import DataConfig
from t5flan.data.preprocessing.features import row_capacity
from t5flan.data.vocabulary.prompt_format import natural_format
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.files import check_folder, check_links, locks, read_object, remove_partial, write_whole
from t5flan.files.buckets import epath
from t5flan.models.config import ModelConfig
from t5flan.training import checkpoints
from t5flan.training.checkpoints.whole import RUN_FIELDS, changed_settings
from t5flan.training.metric_writer import DATA, METRICS, SAMPLES

INITIAL_FIELDS = ('relative_bias_init',)
"""Fields of ModelConfig that say how new parameters are drawn; they mean nothing for parameters that exist."""


WRITTEN = ('config.gin', checkpoints.DESCRIPTION, METRICS, SAMPLES, DATA)
"""Files that a run writes into its workdir."""
_FOLDERS = (checkpoints.CHECKPOINTS, checkpoints.VOCABULARY, checkpoints.HUGGING_FACE, 'tensorboard')


@contextlib.contextmanager
def hold_workdir(workdir: str) -> Iterator[locks.Lock | None]:
    """Makes this run the only one that writes `workdir`, and removes files that a killed run wrote by half.

    Yields:
        The lock, on the first host.

    Raises:
        UserError: on all hosts, if another run writes it, or it is not a folder that a run may write.
    """
    check_folder(workdir, '--workdir')
    check_links(workdir, _FOLDERS, plain=WRITTEN)
    lock, problem = None, None
    is_new = not os.path.lexists(workdir)
    if jax.process_index() == 0:
        try:
            lock = locks.acquire(f'{workdir}/{locks.NAME}', workdir, '--workdir')
        except (UserError, OSError) as error:
            problem = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = multihost_utils.broadcast_one_to_all(np.array(problem is not None))
        if failed and problem is None:
            problem = UserError(f'{workdir} cannot be written by this run; its first process says why.')
    if problem is not None:
        raise problem
    try:
        for folder in ('', *_FOLDERS) if lock is not None else ():
            remove_partial(os.path.join(workdir, folder))
        yield lock
    finally:
        if lock is not None:
            lock.release()
            with contextlib.suppress(OSError):  # a run that failed before it wrote anything
                if is_new:
                    os.rmdir(workdir)


def describe(model: ModelConfig, data: DataConfig, vocabulary: Vocabulary) -> checkpoints.Description:
    """The description of a run for its checkpoint folder."""
    order = ['mixture', 'split', 'seed', 'shuffle', 'pack', 'too_long', 'concatenate']
    order += ['denoisers', 'mixtures', 'stages', 'mixed_in']
    settings = json.loads(json.dumps(dataclasses.asdict(data)))  # as they read back from the file
    return checkpoints.Description(
        model=model,
        format=data.format,
        feature_lengths=dict(data.feature_lengths),
        vocabulary={'size': vocabulary.vocab_size, 'fingerprint': vocabulary.fingerprint},
        data={name: settings[name] for name in order}
        | {'batch_size': data.batch_size, 'streams': data.stream_count}
        | {f'instructions.{name}': value for name, value in settings['instructions'].items()},
    )


def with_adapter(
    description: checkpoints.Description, settings: Adapter | None, workdir: str, source: str | None
) -> checkpoints.Description:
    """`description` with an adapter: its settings, and which base it belongs to.

    Args:
        source: the initial checkpoint, the base of a new adapter; a run that resumes keeps its own.

    Raises:
        UserError: a new adapter has no base, `source` cannot be trained further, or rows are packed and must not be.
    """
    if source is not None and checkpoints.latest_step(workdir) is None:
        checkpoints.check_is_model(source)
    if settings is None:
        return description
    given = f'RunConfig.adapter=@{type(settings).__name__}()'
    if description.data['pack'] and not settings.packed:
        problem = f'{given}, but DataConfig.pack=True: what it adds would be seen by one example of a row'
        raise UserError(f'{problem}. Set DataConfig.pack=False.')
    fields = json.loads(json.dumps(dataclasses.asdict(settings)))  # as they read back from the file
    record: dict[str, Any] = {'method': type(settings).__name__, 'settings': fields}
    if checkpoints.latest_step(workdir) is not None:
        record = dict(checkpoints.read_description(workdir).adapter or {}) | record
    elif source is None:
        fix = 'Set CheckpointConfig.initialize_from to a checkpoint folder.'
        raise UserError(f'{given}, but there is no model to adapt. {fix}')
    else:
        record |= checkpoints.base_record(source, workdir)
    return dataclasses.replace(description, adapter=record)


def continued(workdir: str, data: DataConfig, vocabulary: Vocabulary, source: str | None) -> DataConfig:
    """`data` as it continues the run in `workdir`, or starts one from `source`: its streams and its prompt format.

    Raises:
        UserError: the streams of the run do not divide the new batch size.
    """
    return with_prompt_format(workdir, streams_of_run(workdir, data), vocabulary, source)


def with_prompt_format(workdir: str | None, data: DataConfig, vocabulary: Vocabulary, source: str | None) -> DataConfig:
    """`data` with the prompt format that 'auto' stands for: that of the run in `workdir` or of the initial checkpoint.

    Args:
        workdir: None if there is no run yet.
        source: the initial checkpoint; one that was converted has no prompt format of its own.
    """
    if data.instructions.prompt_format != 'auto':
        return data
    known = workdir if workdir is not None and checkpoints.latest_step(workdir) is not None else source
    chosen = 'plain'
    if known is not None and data.format != 'encoder_decoder':
        recorded = checkpoints.read_description(known).data
        chosen = recorded.get('instructions.prompt_format', 'plain') if recorded else natural_format(vocabulary)
    return dataclasses.replace(data, instructions=dataclasses.replace(data.instructions, prompt_format=chosen))


def check_workdir(workdir: str, new: checkpoints.Description, gin: str = '', source: str | None = None) -> list[str]:
    """Requires the run in `workdir`, if there is one, to have this model, vocabulary and data order.

    Args:
        gin: the operative gin of this start.
        source: the initial checkpoint.

    Returns:
        Lines that name the other settings that differ from those of the last start, and a warning if rows are longer
        than the context that the initial checkpoint was trained with.

    Raises:
        UserError: the first setting that differs and must not.
    """
    if checkpoints.latest_step(workdir) is None:
        return _context_lines(source, new)
    old = checkpoints.read_description(workdir)
    fields, given = old.model.to_dict(), new.model.to_dict()
    pairs = [(f'ModelConfig.{name}', fields[name], given[name]) for name in fields if name not in RUN_FIELDS]
    pairs += [(f'DataConfig.{name}', getattr(old, name), getattr(new, name)) for name in ('format', 'feature_lengths')]
    order = {name: value for name, value in old.data.items() if name != 'batch_size'}  # its position is in examples
    pairs += [(f'DataConfig.{name}', value, new.data.get(name)) for name, value in order.items()]
    pairs += [('DataConfig.vocabulary', old.vocabulary['fingerprint'], new.vocabulary['fingerprint'])]
    pairs += [('RunConfig.adapter', _adapter_settings(old), _adapter_settings(new))]
    for setting, before, now in pairs:
        if before != now:
            fix = 'start a new --workdir (CheckpointConfig.initialize_from starts it from this one)'
            problem = f'{workdir} holds a run with {setting}={before}, given is {now}'
            raise UserError(f'{problem}. Set it back, or {fix}.')
    return changed_settings(workdir) + _changed_settings(workdir, gin) + _context_lines(workdir, new)


def _adapter_settings(description: checkpoints.Description) -> Any:
    record = description.adapter
    return None if record is None else (record['method'], record['settings'])


def _context_lines(folder: str | None, new: checkpoints.Description) -> list[str]:
    """A warning if rows are longer than the context that a decoder from Hugging Face was trained with."""
    if folder is None or new.model.architecture != 'decoder_only':
        return []
    file = checkpoints.checkpoint_root(folder) / checkpoints.HUGGING_FACE / 'config.json'
    context = read_object(file).get('max_position_embeddings') if file.exists() else None
    longest = max(row_capacity(new.format, new.feature_lengths))
    if not isinstance(context, int) or longest <= context:
        return []
    problem = f'rows have {longest} tokens, but the model was trained with {context} (max_position_embeddings)'
    return [f'{problem}: later positions are new to it. Set DataConfig.feature_lengths.']


def streams_of_run(workdir: str, data: DataConfig) -> DataConfig:
    """`data` with the streams of the run in `workdir`, whose position is that of its streams, whatever the batch size.

    Raises:
        UserError: the streams do not divide the new batch size.
    """
    if data.streams is not None or checkpoints.latest_step(workdir) is None:
        return data
    streams = checkpoints.read_description(workdir).data.get('streams', data.stream_count)
    if data.batch_size % streams:
        problem = f'DataConfig.batch_size={data.batch_size} is not a multiple of {streams}, the streams of the run'
        raise UserError(f'{problem} in {workdir}. Set a multiple, or start a new --workdir.')
    return dataclasses.replace(data, streams=streams)


def _changed_settings(workdir: str, gin: str) -> list[str]:
    """Lines that name the settings that differ from those of the last start in `workdir`, with old and new value."""
    file = epath.Path(workdir) / 'config.gin'
    if not file.exists():
        return []
    old, new = _values(file.read_text()), _values(gin)
    paths = ('DataConfig.vocabulary',)  # its content is compared, wherever it is
    changed = [
        (name, old[name], new[name]) for name in old if name in new and old[name] != new[name] and name not in paths
    ]
    return [f'changed since the last start: {name} was {before}, is {now}' for name, before, now in changed]


def _values(gin: str) -> dict[str, str]:
    """'Class.field' -> its value in an operative gin, with macros replaced by their values."""
    pairs = [line.split(' = ', 1) for line in gin.splitlines() if ' = ' in line and not line.startswith('#')]
    macros = {f'%{name}': value for name, value in pairs if '.' not in name}
    return {name: macros.get(value, value) for name, value in pairs if '.' in name}


def write_description(
    workdir: str, description: checkpoints.Description, vocabulary: Vocabulary, gin: str, source: str | None = None
) -> None:
    """Writes t5flan.json, config.gin, the vocabulary, and the Hugging Face files of the initial checkpoint `source`."""
    root = epath.Path(workdir)
    if source is not None and checkpoints.latest_step(workdir) is None:
        _copy_hugging_face_files(checkpoints.checkpoint_root(source), root, vocabulary)
    here = os.getcwd()
    if '://' not in os.fspath(root):
        description = dataclasses.replace(description, started_in=(here, os.path.relpath(here, root)))
    vocabulary.save(root / checkpoints.VOCABULARY)
    write_whole(root / 'config.gin', gin)
    description.write(root)


def _copy_hugging_face_files(source: epath.Path, root: epath.Path, vocabulary: Vocabulary) -> None:
    """Copies what conversion kept of a Hugging Face folder, so that the trained model can be written as one again.

    Tokenizer files are left out if the run has added tokens: conversion writes new ones.
    """
    known = checkpoints.read_description(source).vocabulary['fingerprint']
    folder = source / checkpoints.HUGGING_FACE
    for file in folder.iterdir() if folder.exists() else ():
        if known == vocabulary.fingerprint or file.name in ('config.json', 'generation_config.json'):
            write_whole(root / checkpoints.HUGGING_FACE / file.name, file.read_bytes())
