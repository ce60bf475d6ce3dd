r"""BIG-Bench Hard (Suzgun et al. 2022, arXiv:2210.09261): 27 files, 3-shot, with answers only or chain of thought.

Reads the public release: TASK.json ({"examples": [{"input", "target"}]}) and cot-prompts/TASK.txt, beside or above
them. The prompt is the release's, word for word:

    Evaluate the result of a random Boolean expression.

    Q: not ( ( not not True ) ) is
    A: Let's think step by step.
    Remember that ... So the answer is False.

    Q: not ( True ) and ( True ) is
    A: Let's think step by step.

Without chain of thought an exemplar's answer is only what follows "the answer is" in it ("A: False"), and the prompt
ends with "A:".

The rule that reads a completion:

1. What follows the next question ("Q:" at the start of a word) is ignored.
2. With chain of thought, the answer follows the last "the answer is", in any case; a completion without it has no
   answer, which counts as wrong. Without, the answer is the first line that is not blank.
3. It ends with its line, or before a full stop that ends a sentence.
4. accuracy: it equals the target, letter for letter. This reproduces all 54 accuracies that the release publishes for
   code-davinci-002.
5. flexible_accuracy: it means the same as the target: case, brackets around a letter, the text of an option after its
   letter, commas between words, spaces between parentheses and text after "yes", "no", "true", "false", "valid" and
   "invalid" do not matter.

Averages: over the 27 files ('all'), and over 23 tasks as in the BBH paper, where the three sizes of logical deduction
and of tracking shuffled objects count as one task each.

lm-evaluation-harness (bbh_cot_fewshot, (?<=the answer is )(.*)(?=.)) differs: it takes the first "the answer is", and
always drops the last character of its line, full stop or not.
"""

import json
import re
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, Benchmark, Metrics, Question, after_space, find_folder
from t5flan.scoring.voting import vote

TRIGGER = 'the answer is'
SHOTS = 3
_FOLDERS = ('bbh', 'BIG-Bench-Hard/bbh')
_NEXT_QUESTION = re.compile(r'(?:^|\s)Q:')
_SENTENCE_END = re.compile(r'\.(?=\s|$)')
_LETTER = re.compile(r'\(?([a-z])\)?(?:[):.,]|\s|$)')
_CATEGORIES = json.loads((Path(__file__).parent / 'bbh.json').read_text('utf-8'))['categories']
_TASKS = [
    task for member in _CATEGORIES['23 tasks'] for task in ([member] if isinstance(member, str) else member)
]  # fmt: skip


class BigBenchHard(Benchmark):
    """BBH with chain of thought ('cot') or with answers only ('direct')."""

    metric = 'accuracy'
    shots = SHOTS
    categories = _CATEGORIES
    known_tasks = tuple(sorted(_TASKS))

    def __init__(self, style: str) -> None:
        self.name = f'bbh_{style}'
        self.is_cot = style == 'cot'
        self.max_new_tokens = 1024 if self.is_cot else 128

    def tasks(self, folder: str) -> list[str]:
        """The tasks whose .json files are there."""
        root = find_folder(folder, _FOLDERS, [f'{task}.json' for task in self.known_tasks], self.name)
        return [task for task in self.known_tasks if (root / f'{task}.json').is_file()]

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The examples of a task."""
        root = find_folder(folder, _FOLDERS, [f'{task}.json'], self.name)
        header, exemplars = self._prompt(root, task)
        ending = "Let's think step by step." if self.is_cot else ''
        return [
            Question(task, i, exemplars, f'Q: {given}\nA: {ending}'.rstrip(), target, header)
            for i, (given, target) in enumerate(_examples(root / f'{task}.json')[:limit])
        ]

    def _prompt(self, root: Path, task: str) -> tuple[str, tuple[str, ...]]:
        paths = [place / 'cot-prompts' / f'{task}.txt' for place in (root, root.parent)]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise UserError(f'{paths[0]}: no such file, the exemplars of {task}. Copy cot-prompts there.')
        _, _, text = path.read_text('utf-8').partition('\n-----\n')
        header, *exemplars = re.split(r'^Q: ', text.strip(), flags=re.MULTILINE)
        if not header.strip() or len(exemplars) != SHOTS:
            raise UserError(
                f'{path} has {len(exemplars)} exemplars after its instruction and "-----", expected {SHOTS}. '
                'Get the file from the BIG-Bench-Hard repository.'
            )
        return header, tuple(f'Q: {self._exemplar(text.strip(), path)}\n\n' for text in exemplars)

    def _exemplar(self, text: str, path: Path) -> str:
        if self.is_cot:
            return text
        question, found, _ = text.rpartition('\nA: ')
        answer = _after_trigger(text)
        if not found or answer is None:
            raise UserError(f'{path}: an exemplar has no "A: " or no "{TRIGGER}". Get the original file.')
        return f'{question}\nA: {answer}'

    def stop_strings(self, task: str) -> tuple[str, ...]:
        """The label of the next question."""
        return after_space('Q:')

    def extract(self, completion: str, task: str) -> str | None:
        """The answer, as the rule of this module says."""
        text = _NEXT_QUESTION.split(completion, maxsplit=1)[0]
        if self.is_cot:
            return _after_trigger(text)
        return _sentence(text.strip().partition('\n')[0]) or None

    def judge(self, answer: Answer) -> Metrics:
        """accuracy, flexible_accuracy and no_answer."""
        strict = super().judge(answer)
        same = vote(
            [_meaning(found) for one in answer.samples if (found := self.extract(one, answer.task)) is not None]
        )
        flexible = same is not None and same == _meaning(answer.target)
        return {'accuracy': strict['accuracy'], 'flexible_accuracy': float(flexible), 'no_answer': strict['no_answer']}


def _after_trigger(text: str) -> str | None:
    """What follows the last "the answer is", up to the end of the sentence or line; None without it."""
    start = text.lower().rfind(TRIGGER)
    if start < 0:
        return None
    return _sentence(text[start + len(TRIGGER) :].lstrip(': \t\r\n').partition('\n')[0])


def _sentence(line: str) -> str:
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip()


def _meaning(answer: str) -> str:
    """A form that answers of the same meaning share.

    >>> _meaning('(b) 12/25/1937'), _meaning('B'), _meaning('Yes, it is'), _meaning(']]}'), _meaning('Pear, fig')
    ('b', 'b', 'yes', ']]}', 'pear fig')
    """
    answer = answer.strip(' *"\'`$').lower()
    if re.fullmatch(r'[\[\](){}<>\s]+', answer):
        return ''.join(answer.split())
    if (letter := _LETTER.match(answer)) and len({*re.findall(r'\(([a-z])\)', answer)}) < 2:  # not '(A) or (B)'
        return letter.group(1)
    if word := re.match(r'(yes|no|true|false|valid|invalid)\b', answer):
        return word.group(1)
    return ' '.join(re.sub(r'[,;]', ' ', answer).split())


def _examples(path: Path) -> list[tuple[str, str]]:
    """(input, target) of every example of a file."""
    try:
        rows: Any = json.loads(path.read_text('utf-8'))['examples']
        examples = [(row['input'], row['target']) for row in rows]
        if not all(isinstance(value, str) for row in examples for value in row):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f'{path} is not a file of BIG-Bench Hard, {{"examples": [{{"input": TEXT, "target": TEXT}}]}}. '
            'Get the original file.'
        ) from None
    if not examples:
        raise UserError(f'{path} has no examples. Get the original file.')
    return examples
