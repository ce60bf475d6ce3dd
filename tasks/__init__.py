"""What is trained on and tested on: names of SeqIO tasks and mixtures. In a wheel this is t5flan/tasks; both have that name."""

import importlib

from t5flan.data.config import DataConfig
from t5flan.data.mixtures import registration as blends
from t5flan.errors import UserError


def register_all(data: DataConfig | None = None) -> None:
    """Registers every task and mixture that comes with t5flan, and those that `data` names; calling it again changes nothing.

    Args:
        data: its `modules` are imported, its `text_files` and `file_tasks` become tasks, its `denoisers` and `blends` mixtures of whatever
            there is then.

    Raises:
        UserError: a module cannot be imported, or a task's name is taken.
    """
    from t5flan.tasks import chat, cot, files, natural_instructions, text, ul2
    from t5flan.tasks.flan import mixtures as flan
    from t5flan.tasks.practice import tasks as practice

    text.register()
    practice.register()
    if data is None:
        flan.register()
        return
    for module in data.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f'DataConfig.modules: importing {module!r} failed: {error}. Put its folder on PYTHONPATH or fix '
                'DataConfig.modules.'
            ) from error
    for text_files in data.text_files:
        text.register_files(text_files)
    ul2.register(data.denoisers)
    files.register(data.file_tasks)
    natural_instructions.register(data.natural_instructions, data.natural, data.skip_broken)
    cot.register(data.cot, data.skip_broken)
    chat.register(data.chat, data.skip_broken)
    flan.register(data.skip_broken)  # after those that its mixtures hold
    blends.register(data.blends)
