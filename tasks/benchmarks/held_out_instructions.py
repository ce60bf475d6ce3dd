"""The held-out tasks of Super-NaturalInstructions (Wang et al. 2022, arXiv:2204.07705): ROUGE-L and exact match.

Reads the public release: tasks/TASK.json and splits/default/test_tasks.txt. The first 100 instances of a task are
asked, in Tk-Instruct's layout with its definition and two positive examples; where a prompt is too long, the last
example is left out first. Metrics are those of Tk-Instruct: ROUGE-L with stemming, and exact match without case
and punctuation, the best over an instance's outputs; the paper reports the mean over tasks, and over each category's.

The answer is the completion, up to a next example.
"""

import functools
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, Benchmark, Member, Metrics, Question, find_folder
from t5flan.scoring.metrics import rouge_l_each
from t5flan.scoring.voting import vote
from t5flan.tasks.natural_instructions import TESTED, official_lists
from t5flan.tasks.natural_instructions_files import TaskFile
from t5flan.tasks.tk_instruct import prompt_parts

SHOTS = 2
_FOLDERS = ('natural_instructions_v2', 'natural_instructions', 'natural-instructions')
_NEXT = re.compile(r'(?:^|\n)\s*(?:Now complete the following example|(?:Positive|Negative) Example \d|Input:)')
_STARTS = ('Now complete the following example', 'Positive Example ', 'Negative Example ', 'Input:')
_STOPS = tuple(
    f'\n{space}{start}{digit}'
    for space in ('', ' ')  # Tk-Instruct's layout has one
    for start in _STARTS
    for digit in (string.digits if start.endswith('Example ') else [''])
)
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


class HeldOutInstructions(Benchmark):
    """The test tasks of Natural Instructions."""

    name = 'natural_instructions'
    metric = 'rouge_l'
    shots = SHOTS
    max_new_tokens = 128

    def tasks(self, folder: str) -> list[str]:
        """The tasks of splits/default/test_tasks.txt whose files are there."""
        root = find_folder(folder, _FOLDERS, ['tasks/*.json'], self.name)
        names = official_lists(str(root / 'tasks')).get('test', [])
        if not names:
            raise UserError(f'{root} has no splits/default/test_tasks.txt, the held-out tasks. Get the whole release.')
        return sorted(name for name in names if (root / 'tasks' / f'{name}.json').is_file())

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The first 100 instances of a task, less those whose outputs are all empty."""
        root = find_folder(folder, _FOLDERS, [f'tasks/{task}.json'], self.name)
        file = _task_file(root / 'tasks' / f'{task}.json')
        categories = file.fields.get('Categories') or ['']
        questions = []
        for i in range(min(TESTED, len(file.rows), TESTED if limit is None else limit)):
            instance = file.instance(i)
            header, [shown, _], text = prompt_parts(file, instance, (SHOTS, 0))
            target = {'answers': instance['outputs'], 'category': str(categories[0])}
            questions.append(Question(task, i, tuple(shown), text, target, header, drop_last=True))
        return questions

    def stop_strings(self, task: str) -> tuple[str, ...]:
        """What starts the next example."""
        return _STOPS

    def extract(self, completion: str, task: str) -> str | None:
        """The completion up to the next example."""
        return _NEXT.split(completion, maxsplit=1)[0].strip() or None

    def judge(self, answer: Answer) -> Metrics:
        """As `judge_all`."""
        return self.judge_all([answer])[0]

    def judge_all(self, answers: Sequence[Answer]) -> list[Metrics]:
        """rouge_l and exact_match."""
        given = [vote([self.extract(one, answer.task) for one in answer.samples]) for answer in answers]
        targets = [_answers(answer) for answer in answers]
        scores = rouge_l_each(targets, [text or '' for text in given])
        return [
            {
                'rouge_l': score,
                'exact_match': float(any(_plain(one) == _plain(text or '') for one in right)),
                'no_answer': float(text is None),
            }
            for score, right, text in zip(scores, targets, given, strict=True)
        ]

    def categorize(self, answers: Sequence[Answer]) -> Mapping[str, Sequence[Member]]:
        """The categories that the tasks' files name."""
        found: dict[str, dict[str, None]] = {}
        for answer in answers:
            if isinstance(answer.target, Mapping) and answer.target.get('category'):
                found.setdefault(answer.target['category'], {})[answer.task] = None
        return {category: tuple(found[category]) for category in sorted(found)}


@functools.lru_cache(maxsize=4)
def _task_file(path: Path) -> TaskFile:
    return TaskFile(str(path))


def _answers(answer: Answer) -> list[str]:
    """The right outputs: of an object with "answers", a list or one text."""
    target: Any = answer.target.get('answers', []) if isinstance(answer.target, Mapping) else answer.target
    return [target] if isinstance(target, str) else [str(one) for one in target]


def _plain(text: str) -> str:
    """Tk-Instruct's normalization: lower case, no punctuation, single spaces; articles stay."""
    return ' '.join(text.lower().translate(_NO_PUNCTUATION).split())
