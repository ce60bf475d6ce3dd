"""`t5flan convert`: a checkpoint of T5X, Hugging Face or t5flan, written as one of another of them.

    SRC --reader--> Checkpoint (t5flan's names, a layer at a time) --writer--> DST.partial-… --renamed--> DST

A layer at a time is read, checked for NaN and written, so that memory holds little more than the largest array. Whatever goes
wrong, DST is there whole or not at all.
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.conversion import folder as own_folder
from t5flan.conversion import huggingface, names, t5x
from t5flan.conversion.checkpoint import Checkpoint
from t5flan.conversion.run_both import compare_logits
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig

FORMATS = ('hf', 't5x', 't5flan')
RUN_FIELDS = ('dtype', 'dropout_rate', 'scan_layers', 'remat', 'attention')
"""Fields of ModelConfig that say how a model runs, not what it is."""
Settings = Callable[[dict[str, Any]], ModelConfig]
_SPARE = 2**26  # bytes of small files and folders


def main(
    source: str,
    destination: str,
    from_: str,
    to: str,
    *,
    vocabulary: str | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    known_models: Any = list,
    allow_nan: bool = False,
    check: bool = False,
    logits: bool = False,
    shard_size: int = huggingface.SHARD_SIZE,
) -> None:
    """Converts, and says what was assumed and what could not be kept.

    Args:
        from_, to: of FORMATS.
        vocabulary: 'bytes' or a SentencePiece model, where the source brings none (or another is wanted).
        dtype: what numbers are rounded to; None keeps each array's own.
        settings: fields of a ModelConfig as found -> the ModelConfig, with what the user sets: what a T5X checkpoint does not
            say, and how the result shall run.
        known_models: makes the packaged models, of which one may have a T5X checkpoint's sizes.
        allow_nan: whether NaN may be copied.
        check: afterwards both are read and compared; if DST is there already, that is all that is done.
        logits: with `check`, both models are run too, where transformers and torch are installed.

    Raises:
        UserError: in one line, what is wrong with which file; nothing is left behind.
    """
    checkpoint = read(source, from_, vocabulary, known_models, settings)
    if dtype is not None:
        checkpoint = checkpoint.cast(dtype)
    target = Path(destination)
    if '://' in destination:
        raise UserError(
            f'{destination}: results are written to a local folder. Convert to one and copy it to the bucket.'
        )
    if os.path.lexists(target):
        if not check:
            raise UserError(
                f'{destination} exists already: nothing is overwritten. Name another folder, or remove it; --check '
                'compares the two.'
            )
        notes = []
    else:
        notes = write(checkpoint, target, to, allow_nan, shard_size)
        count = sum(int(np.prod(shape.whole)) for shape in names.shapes(checkpoint.config).values())
        print(f'{destination}: {count:,} parameters, {checkpoint.bytes / 2**30:.2f} GiB, as {to}')
    for note in (*checkpoint.notes, *notes):
        print(f'note: {note}')
    if check:
        compare(checkpoint, read(destination, to, None, known_models), destination)
    if logits and 'hf' not in (from_, to):
        print('note: --logits runs the model of transformers, and neither side is one: nothing was run')
    elif logits:
        compare_logits(checkpoint, Path(source if from_ == 'hf' else destination))


def read(
    where: str | os.PathLike[str],
    form: str,
    vocabulary: str | None = None,
    known_models: Any = list,
    settings: Settings | None = None,
) -> Checkpoint:
    """The checkpoint of one of FORMATS at `where`.

    Raises:
        UserError: it cannot be read as one, or `settings` make another model of it.
    """
    where = os.fspath(where)
    chosen = None if vocabulary is None else ByteVocabulary() if vocabulary == 'bytes' else load_vocabulary(vocabulary)
    if form == 't5x':
        return t5x.read(where, chosen, known_models, settings)
    checkpoint = huggingface.read(Path(where), chosen) if form == 'hf' else own_folder.read(where, vocabulary=chosen)
    if settings is None:
        return checkpoint
    found = checkpoint.config
    config = settings(found.to_dict())
    for field in dataclasses.fields(config):
        given, held = getattr(config, field.name), getattr(found, field.name)
        if given != held and field.name not in RUN_FIELDS:
            raise UserError(
                f'--gin.ModelConfig.{field.name}={given!r}, but the model of {where} has {held!r}. Leave it out (what '
                f'may be set is {", ".join(RUN_FIELDS)}).'
            )
    return dataclasses.replace(checkpoint, config=config)


def write(
    checkpoint: Checkpoint, target: Path, form: str, allow_nan: bool = False, shard_size: int = huggingface.SHARD_SIZE
) -> list[str]:
    """Writes `target` whole or not at all; gives what could not be kept.

    Raises:
        UserError: the format has no such model, a number is NaN, the disk is full, or someone made `target` meanwhile.
    """
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    needed, free = checkpoint.bytes + _SPARE, shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f'{target} needs {needed / 2**30:.1f} GiB, {parent} has {free / 2**30:.1f} GiB free. Make room, or name '
            'another disk.'
        )
    partial = Path(tempfile.mkdtemp(prefix=f'{target.name}.partial-', dir=parent))
    try:
        if form == 'hf':
            notes = huggingface.write(checkpoint, partial, allow_nan, shard_size)
        else:
            notes = (t5x.write if form == 't5x' else own_folder.write)(checkpoint, partial, allow_nan)
        partial.chmod(0o755)
        os.rename(partial, target)  # fails where a folder with something in it has appeared
    except OSError as error:
        raise UserError(
            f'{target} could not be written: {error.strerror or error}. Nothing was left behind; make room or name another '
            'folder.'
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


def compare(one: Checkpoint, other: Checkpoint, destination: str) -> None:
    """Compares every array bit for bit, and what makes a model of them.

    Raises:
        UserError: naming the first difference.
    """
    before, after = one.config.to_dict(), other.config.to_dict()
    field = next((field for field in before if before[field] != after[field] and field not in RUN_FIELDS), None)
    if field is not None:
        raise UserError(
            f'{destination} differs from {one.where}: ModelConfig.{field} is {after[field]!r} there, {before[field]!r} here. '
            'Convert again.'
        )
    for (shape, layer, a), (_, _, b) in zip(one.pieces(allow_nan=True), other.pieces(allow_nan=True), strict=True):
        if a.dtype != b.dtype or not np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)):
            where = shape.name if layer is None else f'layer {layer} of {shape.name}'
            raise UserError(
                f'{destination} differs from {one.where}: {where} has other numbers ({a.dtype} and {b.dtype}). Convert '
                'again.'
            )
    print(f'checked: every number of {destination} is that of {one.where}')
    if one.vocabulary.fingerprint != other.vocabulary.fingerprint:
        print(f'note: the vocabulary of {destination} is another than that of {one.where}')
