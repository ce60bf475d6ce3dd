"""Generated instruction tasks that need no files; the quickstart trains and tests on them."""

from t5flan.tasks.practice.tasks import SKILLS, make_example, register, task_names

__all__ = ['SKILLS', 'make_example', 'register', 'task_names']
