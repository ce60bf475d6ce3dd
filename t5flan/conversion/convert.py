"""`t5flan convert`: converts a checkpoint of T5X, Hugging Face or t5flan to another of these formats, and GGUF files.

    SRC --reader--> Checkpoint (t5flan's names, a layer at a time) --writer--> .DST.….tmp --renamed--> DST

One layer at a time is read, checked for NaN and written, so memory holds little more than the largest array. Whatever
fails, DST is complete or not there.
"""

import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from t5flan.conversion import folder as own_folder
from t5flan.conversion import huggingface, names, t5x
from t5flan.conversion.adapters import combined, peft
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.conversion.checkpoint import Checkpoint
from t5flan.conversion.gguf import model as gguf
from t5flan.conversion.gguf.file import files_of
from t5flan.conversion.run_both import compare_logits
from t5flan.conversion.t5x import KnownModels, Settings
from t5flan.data.randomness import stable_hash
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from t5flan.files import cache_folder, check_links
from t5flan.files.partial import partial_folder
from t5flan.models.config import ModelConfig
from t5flan.training.checkpoints.whole import RUN_FIELDS
from t5flan.training.description import INITIAL_FIELDS

FORMATS = ('hf', 't5x', 't5flan')
"""Formats of whole models."""
PEFT = 'peft'
"""The format of adapters."""
GGUF = 'gguf'
"""The format of llama.cpp, which is only read."""
Written = TypeVar('Written')

HUB = 'hf:'
"""Marks the name of a model of the Hugging Face hub."""
_SPARE = 2**26  # bytes for small files and folders


def main(
    source: str,
    destination: str,
    from_: str,
    to: str,
    *,
    vocabulary: str | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    known_models: KnownModels = list,
    allow_nan: bool = False,
    check: bool = False,
    logits: bool = False,
    shard_size: int = huggingface.SHARD_SIZE,
    add_tokens: Sequence[str] = (),
    base: str | None = None,
    merge: bool = False,
    rank: int | None = None,
    combine: str | None = None,
) -> None:
    """Converts a checkpoint and prints what was assumed and what could not be kept.

    Args:
        source, destination: SRC and DST.
        from_, to: their formats, of FORMATS, or PEFT; `from_` may be GGUF.
        vocabulary: 'bytes' or a SentencePiece model, used instead of the source's vocabulary.
        dtype: the dtype to which numbers are rounded; None keeps each array's dtype.
        settings: maps the fields of a ModelConfig that were found to the ModelConfig, with the user's settings: what a
            T5X checkpoint does not say, and how the result runs.
        known_models: returns the packaged models, one of which may have a T5X checkpoint's sizes.
        allow_nan: also converts NaN.
        check: compares source and destination afterwards; if DST exists already, only compares them.
        logits: with `check`, also compares the logits of both models (needs transformers and torch).
        shard_size: bytes per safetensors file, at most.
        add_tokens: tokens to add to the vocabulary, with rows in embedding and logits.
        base: the checkpoint folder of the model that an adapter of PEFT belongs to.
        rank: write an adapter of DyLoRA as one of LoRA with this rank.
        merge: write an adapter of PEFT, or a combined one, as a whole model, merged into its base.
        combine: 'cat' or 'linear': `source` is adapters of one base with their weights, 'DIR:0.7,DIR:0.3', and the
            result is their sum; see `adapters.combine`.

    Raises:
        UserError: a file is invalid or cannot be written; nothing is left behind.
    """
    if rank is not None:
        cut_adapter(source, destination, rank)
        return
    if to == 'peft' or (from_ == 'peft' and to == 't5flan' and not merge):
        convert_adapter(source, destination, from_, base)
        return
    if combine is not None and not merge:
        combine_adapters(source, destination, combine)
        return
    checkpoint = read(source, from_, vocabulary, known_models, settings, base, combine)
    if dtype is not None:
        checkpoint = checkpoint.cast(dtype)
    if add_tokens:
        checkpoint = checkpoint.with_added_tokens(add_tokens)
    target = Path(destination)
    if '://' in destination:
        fix = 'Convert to one and copy it to the bucket.'
        raise UserError(f'{destination}: results are written to a local folder. {fix}')
    notes = []
    if os.path.lexists(target):
        if not check:
            fix = 'Name another folder, remove it, or set --check to compare the two.'
            raise UserError(f'{destination} exists already: nothing is overwritten. {fix}')
    else:
        notes = write(checkpoint, target, to, allow_nan, shard_size)
        count = sum(math.prod(shape.whole) for shape in names.shapes(checkpoint.config).values())
        print(f'{destination}: {count:,} parameters, {checkpoint.bytes / 2**30:.2f} GiB, as {to}')
    for note in (*checkpoint.notes, *notes):
        print(f'note: {note}')
    if check:
        compare(checkpoint, read(destination, to, None, known_models), destination)
    if logits and 'hf' not in (from_, to):
        print('note: --logits needs a Hugging Face folder on one side: logits were not compared')
    elif logits:
        compare_logits(checkpoint, Path(source if from_ == 'hf' else destination))


def read(
    where: str | os.PathLike[str],
    format: str,
    vocabulary: str | None = None,
    known_models: KnownModels = list,
    settings: Settings | None = None,
    base: str | None = None,
    combine: str | None = None,
) -> Checkpoint:
    """Opens the checkpoint at `where`, in one of FORMATS, PEFT or GGUF; see `main` for the arguments.

    Raises:
        UserError: it cannot be read, or `settings` change the model.
    """
    where = os.fspath(where)
    if combine is not None:
        sum_ = combined.read(where, combine)
        checkpoint = own_folder.read(sum_.base)
        adapter_folder.require_base(checkpoint, sum_.fingerprint, where)
        return adapter_folder.merged(checkpoint, sum_.settings, sum_.arrays, where)
    if format in ('hf', 'peft'):
        check_links(where)
    chosen: Any = None
    if vocabulary is not None:
        chosen = ByteVocabulary() if vocabulary == 'bytes' else load_vocabulary(vocabulary)
    if format == 't5x':
        return t5x.read(where, chosen, known_models, settings)
    if format == 'peft':
        found = peft.read(Path(where), _required(base, where))
        return adapter_folder.merged(own_folder.read(_required(base, where)), found.settings, found.arrays, where)
    if format == 't5flan':
        checkpoint = own_folder.read(where, vocabulary=chosen)
    else:
        checkpoint = (gguf.read if format == GGUF else huggingface.read)(Path(where), chosen)
    if settings is None:
        return checkpoint
    known = checkpoint.config
    config = settings(known.to_dict())
    changed = _first_difference(known, config)
    if changed is not None:
        given = f'--gin.ModelConfig.{changed}={getattr(config, changed)!r}'
        problem = f'{given}, but the model of {where} has {getattr(known, changed)!r}'
        raise UserError(f'{problem}. Remove it (only {", ".join(RUN_FIELDS)} may be set).')
    return dataclasses.replace(checkpoint, config=config)


def convert_adapter(source: str, destination: str, from_: str, base: str | None) -> None:
    """Converts an adapter between PEFT's format and t5flan's, without its base; see `main` for the arguments.

    Raises:
        UserError: `source` is not an adapter, or `destination` exists or cannot be written.
    """
    if from_ not in ('peft', 't5flan'):
        raise UserError(f'{source} is a whole model in the format {from_}, not an adapter. Set --from=t5flan.')
    target = new_folder(destination)
    if from_ == 't5flan':
        _write_whole(target, lambda partial: peft.write(partial, source))
        print(f'{destination}: an adapter, as peft; set base_model_name_or_path in its {peft.CONFIG}')
        return
    found = peft.read(Path(source), _required(base, source))
    kept = {peft.CONFIG: (Path(source) / peft.CONFIG).read_bytes()}
    folder = _required(base, source)
    _write_whole(target, lambda partial: adapter_folder.write(partial, folder, found.settings, found.arrays, kept))
    size = sum(array.size for array in found.arrays.values())
    print(f'{destination}: {size:,} parameters, an adapter of {folder}, as t5flan')


def cut_adapter(source: str, destination: str, rank: int) -> None:
    """Writes the first `rank` columns and rows of a DyLoRA adapter as a LoRA adapter of the same base.

    Raises:
        UserError: `source` is not an adapter of DyLoRA, the rank is above its own, or `destination` exists.
    """
    target = new_folder(destination)
    cut = adapter_folder.read_cut(source, rank)
    _write_whole(target, lambda partial: adapter_folder.write_derived(partial, source, cut))
    size = sum(array.size for array in cut.arrays.values())
    print(f'{destination}: {size:,} parameters, an adapter of {cut.base}, as t5flan')


def new_folder(destination: str) -> Path:
    """The path of a result.

    Raises:
        UserError: something is there.
    """
    if os.path.lexists(destination):
        raise UserError(f'{destination} exists already: nothing is overwritten. Name another folder, or remove it.')
    return Path(destination)


def combine_adapters(sources: str, destination: str, convention: str) -> None:
    """Writes the sum of adapters as an adapter's folder; see `main` for the arguments.

    Raises:
        UserError: the adapters do not compose, or `destination` exists or cannot be written.
    """
    target = new_folder(destination)
    found = combined.read(sources, convention)
    _write_whole(target, lambda partial: adapter_folder.write_derived(partial, sources, found))
    size = sum(array.size for array in found.arrays.values())
    print(f'{destination}: {size:,} parameters, the sum of adapters of {found.base}, as t5flan')


def _required(base: str | None, where: str) -> str:
    if base is None:
        raise UserError(
            f'{where} is an adapter of PEFT, and its base is not given. Set --base to its checkpoint folder.'
        )
    return base


def write(
    checkpoint: Checkpoint, target: Path, format: str, allow_nan: bool = False, shard_size: int = huggingface.SHARD_SIZE
) -> list[str]:
    """Writes `target` completely or not at all.

    Returns:
        What could not be kept, one line each.

    Raises:
        UserError: the format has no such model, a number is NaN, the disk is full, or `target` appeared meanwhile.
    """
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    needed, free = checkpoint.bytes + _SPARE, shutil.disk_usage(parent).free
    if needed > free:
        problem = f'{target} needs {needed / 2**30:.1f} GiB, but {parent} has {free / 2**30:.1f} GiB free'
        raise UserError(f'{problem}. Free some space, or name a folder on another disk.')

    def write_into(folder: Path) -> list[str]:
        if format == 'hf':
            return huggingface.write(checkpoint, folder, allow_nan, shard_size)
        return (t5x.write if format == 't5x' else own_folder.write)(checkpoint, folder, allow_nan)

    return _write_whole(target, write_into)


def _write_whole(target: Path, write_into: Callable[[Path], Written]) -> Written:
    """Calls `write_into(a new folder)`, which gets the name `target` if nothing fails, and returns its result."""
    try:
        with partial_folder(target) as partial:
            notes = write_into(partial)
            os.rename(partial, target)  # fails if a non-empty folder has appeared
    except OSError as error:
        problem = f'{target} could not be written: {error.strerror or error}. Nothing was left behind'
        raise UserError(f'{problem}. Free some space, or name another folder.') from None
    return notes


def as_checkpoint_folder(where: str) -> str:
    """A checkpoint folder of t5flan: `where` itself, or the conversion of a Hugging Face folder or a GGUF file.

    A conversion is stored in the cache folder and made again when a file of the source changes.

    Args:
        where: a folder, a GGUF file, or 'hf:OWNER/NAME' for a model of the hub, which is downloaded first.

    Raises:
        UserError: the model cannot be downloaded or converted.
    """
    where = os.path.expanduser(where)
    source = _download(where.removeprefix(HUB)) if where.startswith(HUB) else Path(where)
    if '://' in where:
        return where
    if is_gguf(where):
        format, files = GGUF, [file for file in files_of(source) if file.is_file()]
    elif (source / 'config.json').is_file() and not (source / 't5flan.json').is_file():
        format, files = 'hf', sorted(source.iterdir())
    else:
        return where
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    stamp = stable_hash(f'{source.absolute()} {stats}')
    target = cache_folder() / 'checkpoints' / f'{source.name}-{stamp:016x}'
    if not target.is_dir():
        checkpoint = read(source, format)
        try:
            notes = write(checkpoint, target, 't5flan')
        except UserError:
            if not target.is_dir():  # else another process has converted it at the same time
                raise
            return str(target)
        print(f'{where}: converted once, to {target}', file=sys.stderr)
        for note in (*checkpoint.notes, *notes):
            print(f'note: {note}', file=sys.stderr)
    return str(target)


def is_gguf(where: str) -> bool:
    """Whether a checkpoint is named as a GGUF file."""
    is_local = '://' not in where and not where.startswith(HUB)
    return is_local and where.endswith(gguf.SUFFIX) and not os.path.isdir(where)


def _download(name: str) -> Path:
    """The files of a model of the hub, without its pickle files."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{HUB}{name} needs huggingface_hub: pip install 't5flan[hub]', or name a folder.") from None
    patterns = ['*.json', '*.safetensors', '*.model', '*.jinja']
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, etag_timeout=20))
    except Exception as error:  # the library raises errors of many kinds, of the network too
        why = ' '.join(str(error).split())[:150]
        fix = 'Check the name and the network, or download the folder elsewhere and name it.'
        raise UserError(f'{HUB}{name} cannot be downloaded ({why}). {fix}') from None


def compare(one: Checkpoint, other: Checkpoint, destination: str) -> None:
    """Compares the models, and every array bit for bit.

    Raises:
        UserError: the first difference.
    """
    differs = f'{destination} differs from {one.where}'
    field = _first_difference(one.config, other.config)
    if field is not None:
        here, there = getattr(one.config, field), getattr(other.config, field)
        raise UserError(f'{differs}: ModelConfig.{field} is {there!r} there, {here!r} here. Convert again.')
    for (shape, layer, a), (_, _, b) in zip(one.pieces(allow_nan=True), other.pieces(allow_nan=True), strict=True):
        if a.dtype != b.dtype or not np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)):
            problem = f'{shape.name_of(layer)} has different numbers ({a.dtype} and {b.dtype})'
            raise UserError(f'{differs}: {problem}. Convert again.')
    print(f'checked: {destination} has the same numbers as {one.where}')
    if one.vocabulary.fingerprint != other.vocabulary.fingerprint:
        print(f'note: {destination} has a different vocabulary from {one.where}')


def _first_difference(one: ModelConfig, other: ModelConfig) -> str | None:
    """The first field of the model that differs, apart from how it runs and how its parameters are first drawn."""
    fields = (field.name for field in dataclasses.fields(one) if field.name not in (*RUN_FIELDS, *INITIAL_FIELDS))
    return next((name for name in fields if getattr(one, name) != getattr(other, name)), None)
