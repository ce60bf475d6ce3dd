"""Tasks and mixtures to train and evaluate on, registered by name. Imported as t5flan.tasks."""

import importlib
from collections.abc import Iterable
from pathlib import Path

from t5flan.data.config import DataConfig
from t5flan.data.mixtures import definitions, registration
from t5flan.errors import UserError

NO_MIXTURE = '-'
"""DataConfig.mixture of a command that reads no mixture."""


def register_all(data: DataConfig | None = None) -> None:
    """Registers the tasks and mixtures of t5flan and those that `data` defines; calling it again changes nothing.

    Args:
        data: its `modules` are imported, its files become tasks, its `denoisers` and `mixtures` become mixtures of the
            tasks registered by then.

    Raises:
        UserError: a module cannot be imported, a file is faulty, or a task's name is taken.
    """
    from t5flan.tasks import text
    from t5flan.tasks.flan import collection
    from t5flan.tasks.flan import mixtures as flan
    from t5flan.tasks.practice import tasks as practice

    definitions.publish()
    text.register()
    practice.register()
    if data is None:
        flan.register()
        return
    _set_tfds_folder(data.tfds_data_dir)
    for module in data.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f'DataConfig.modules: importing {module!r} failed: {error}. Set PYTHONPATH or DataConfig.modules.'
            ) from error
    _register_files(data)
    flan.register(data.skip_broken)  # after the tasks that its mixtures include
    used = {data.mixture, *(stage.mixture for stage in data.stages), *data.mixed_in}
    needed = collection.MIXTURE in registration.names_inside(used, data.mixtures)
    collection.register(data.flan_collection, data.flan_redistribute, needed, data.skip_broken)
    registration.register(data.mixtures)


def register_natively(data: DataConfig | None, others: Iterable[str] = ()) -> bool:
    """Registers the tasks of a run without SeqIO and TensorFlow, whose import takes seconds.

    That is possible if all of them read records by number: the run's own files, the documentation of the standard
    library and the practice tasks.

    Args:
        data: None registers only the packaged tasks among these.
        others: further tasks and mixtures that the run uses, such as EvaluationConfig.tasks.

    Returns:
        False if the run needs SeqIO: call `register_all` then. Later calls of it register the same with SeqIO, too.

    Raises:
        UserError: a file is faulty, or a task's name is taken.
    """
    from t5flan.tasks import text
    from t5flan.tasks.practice import tasks as practice

    if definitions.is_published():
        return False
    if data and any((data.modules, data.cache, data.tfds_data_dir, data.flan_collection)):
        return False
    text.register_docs()
    practice.register()
    if data is None:
        return True
    _register_files(data)
    own = {mixture.name for mixture in data.mixtures}
    used = {data.mixture, *(stage.mixture for stage in data.stages), *data.mixed_in, *others}
    used |= {part for mixture in data.mixtures for part in (*mixture.rates, *mixture.by_examples)}
    if any(
        definitions.find(name) is None for name in used - own - {NO_MIXTURE}
    ):  # a pattern, too, may match tasks of TFDS
        return False
    registration.register(data.mixtures)
    return True


def _register_files(data: DataConfig) -> None:
    """Registers the tasks of the files that the settings name, and the mixtures of denoisers."""
    from t5flan.tasks import chat, cot, files, natural_instructions, text, ul2

    for text_files in data.text_files:
        text.register_files(text_files)
    ul2.register(data.denoisers)
    files.register(data.file_tasks, data.skip_broken)
    natural_instructions.register(data.natural_instructions, data.natural, data.skip_broken)
    cot.register(data.cot or (), data.skip_broken)
    chat.register(data.chat or (), data.skip_broken)


def _set_tfds_folder(folder: str | None) -> None:
    """Reads TFDS's data sets from a folder, in all tasks.

    Raises:
        UserError: it does not exist.
    """
    import seqio

    if folder is not None and '://' not in folder and not Path(folder).is_dir():
        raise UserError(f'DataConfig.tfds_data_dir={folder!r}: no such folder. Set it to that of `tfds build`.')
    seqio.set_tfds_data_dir_override(folder)
