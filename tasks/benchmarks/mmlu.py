"""MMLU (Hendrycks et al. 2020, arXiv:2009.03300): 57 subjects with four options a question, 5-shot.

Reads the public release: dev/SUBJECT_dev.csv (5 exemplars) and test/SUBJECT_test.csv, without a header: question, the
options A to D, and the letter of the right one. Three ways to ask:

    mmlu_direct      the model writes the letter; the release's prompt, "Answer:" at its end
    mmlu_likelihood  the same prompt; the letter with the highest likelihood counts
    mmlu_cot         Flan's prompts with chain of thought: mmlu-cot.json of github.com/jasonwei20/flan-2, in the folder

The rule that reads a completion: what follows the next question is ignored. A letter counts if it stands in brackets,
or alone before punctuation or the end of the line; of what follows the last "answer is" or "answer:" if there is such a
phrase, otherwise (without chain of thought only) of the first line. Two different letters are no answer.

Averages: the four categories of the release's categories.py, and all subjects, which the papers report.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Benchmark, Question, after_space, find_folder

SHOTS = 5
LETTERS = 'ABCD'
_FOLDERS = ('mmlu', 'mmlu/data', 'data')
_CATEGORIES: dict[str, list[str]] = json.loads((Path(__file__).parent / 'mmlu.json').read_text('utf-8'))['categories']
_NEXT_QUESTION = re.compile(r'(?:^|\s)(?:Q|Question):|\n\n(?=.*\n\(?A[.)])')
_TRIGGER = re.compile(r'answer(?:\s+is\b|\s*:)[:\s]*', re.IGNORECASE)
_BRACKETED = re.compile(r'\(([A-D])\)', re.IGNORECASE)
_ALONE = re.compile(r'[\s*"\']*(?:option\s+)?([A-Da-d])(?=[*"\']*\s*(?:$|[).:,\n]))', re.IGNORECASE)


class MultitaskUnderstanding(Benchmark):
    """MMLU; style is 'direct', 'likelihood' or 'cot'."""

    metric = 'accuracy'
    shots = SHOTS
    categories = _CATEGORIES
    known_tasks = tuple(sorted(subject for subjects in _CATEGORIES.values() for subject in subjects))

    def __init__(self, style: str) -> None:
        self.name, self.style = f'mmlu_{style}', style
        self.max_new_tokens = 512 if style == 'cot' else 16

    def tasks(self, folder: str) -> list[str]:
        """The subjects whose test files are there."""
        root = find_folder(folder, _FOLDERS, ['test/*_test.csv'], self.name)
        names = [path.name.removesuffix('_test.csv') for path in sorted((root / 'test').glob('*_test.csv'))]
        return [name for name in names if name in self.known_tasks]

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The questions of a subject."""
        root = find_folder(folder, _FOLDERS, [f'test/{task}_test.csv'], self.name)
        rows = _read(root / 'test' / f'{task}_test.csv')[:limit]
        if self.style == 'cot':
            header, exemplars = _cot_prompt(root, task)
            word = lambda row: f"Q: {row[0]}\n{_in_brackets(row)}\nA: Let's think step by step."
        else:
            shown = _read(root / 'dev' / f'{task}_dev.csv')
            header = f'The following are multiple choice questions (with answers) about {task.replace("_", " ")}.\n\n'
            word = lambda row: f'{row[0]}\n{_in_lines(row)}\nAnswer:'
            exemplars = tuple(f'{word(row)} {row[5]}\n\n' for row in shown[:SHOTS])
        options = tuple(f' {letter}' for letter in LETTERS) if self.style == 'likelihood' else ()
        return [Question(task, i, exemplars, word(row), row[5], header, options) for i, row in enumerate(rows)]

    def stop_strings(self, task: str) -> tuple[str, ...]:
        """The labels of the next question."""
        return after_space('Q:', 'Question:')

    def extract(self, completion: str, task: str) -> str | None:
        """The letter, as the rule of this module says."""
        text = _NEXT_QUESTION.split(completion, maxsplit=1)[0]
        triggers = list(_TRIGGER.finditer(text))
        if not triggers and self.style == 'cot':
            return None
        text = text[triggers[-1].end() :] if triggers else text.strip()
        line = re.split(r'\n|\.(?=\s)', text, maxsplit=1)[0]
        letters = {letter.upper() for letter in _BRACKETED.findall(line)}
        if not letters and (alone := _ALONE.match(line)):
            letters = {alone.group(1).upper()}
        return letters.pop() if len(letters) == 1 else None


def _in_lines(row: list[str]) -> str:
    return '\n'.join(f'{letter}. {option}' for letter, option in zip(LETTERS, row[1:5]))


def _in_brackets(row: list[str]) -> str:
    return ' '.join(f'({letter}) {option}' for letter, option in zip(LETTERS, row[1:5]))


def _read(path: Path) -> list[list[str]]:
    """The rows of a file: six cells each."""
    if not path.is_file():
        raise UserError(f'{path}: no such file. Set --benchmark_dir to the folder with dev/ and test/ of MMLU.')
    rows: list[list[str]] = []
    try:
        with open(path, encoding='utf-8', newline='') as file:
            for row in csv.reader(file):
                if row and (len(row) != 6 or row[5].strip() not in (*LETTERS,)):
                    end = f'and ends with {row[-1][:20]!r}' if len(row) == 6 else ''
                    raise UserError(
                        f'{path} row {len(rows) + 1} has {len(row)} columns {end}'.rstrip()
                        + ', expected question, A, B, C, D and the letter, without a header. Get the original file.'
                    )
                rows += [[*row[:5], row[5].strip()]] if row else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path} is not CSV in UTF-8 ({error}). Get the original file.') from None
    if not rows:
        raise UserError(f'{path} has no rows. Get the original file.')
    return rows


def _cot_prompt(root: Path, task: str) -> tuple[str, tuple[str, ...]]:
    """The header and the exemplars of a subject in mmlu-cot.json, beside dev/ and test/ or beside their folder."""
    paths = [place / 'mmlu-cot.json' for place in (root, root.parent)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f'{paths[0]}: no such file, the exemplars of mmlu_cot. Copy it there from github.com/jasonwei20/flan-2.'
        )
    try:
        prompts: Any = json.loads(path.read_text('utf-8'))
        header, *exemplars = re.split(r'^Q: ', prompts[task].strip(), flags=re.MULTILINE)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{path} has no prompt of {task!r}. Get the original file.') from None
    if not exemplars:
        raise UserError(f'{path}: the prompt of {task!r} has no exemplars ("Q: ..."). Get the original file.')
    return header, tuple(f'Q: {text.strip()}\n\n' for text in exemplars)
