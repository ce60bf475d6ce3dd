"""Generated instruction tasks that need no files: what the quickstart trains and tests on."""

from t5flan.tasks.practice.tasks import SKILLS, make_example, register, task_names

__all__ = ['SKILLS', 'make_example', 'register', 'task_names']
