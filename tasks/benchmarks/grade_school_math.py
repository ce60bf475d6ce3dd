"""Grade school math with chain of thought, 8-shot: GSM8K in English, MGSM in 11 languages.

GSM8K (Cobbe et al. 2021, arXiv:2110.14168) reads test.jsonl; its exemplars are those of Wei et al. (arXiv:2201.11903).
MGSM (Shi et al. 2022, arXiv:2210.03057) reads mgsm_LANGUAGE.tsv and exemplars.json or exemplars.py: questions and
rationales in the language itself. Its papers report the mean over the ten languages other than English.

The rule that reads a completion:

1. What follows the next question ("Q:", "Question:", "Frage:" ...) is ignored.
2. The answer is the first number after the last trigger ("The answer is", "####", or the language's own: "Die Antwort
   lautet") in the same line; where an equation follows ("is 5 + 6 = 11"), the first number after its last "=".
3. Without a trigger, or without a number after it, the answer is the last number of the text.
4. Numbers are compared by value: 18, 18.00, $18 and the digits of every script are equal; German, French, Russian and
   Spanish separators are understood, and 万, 億, 만 and their like. Numbers in words are not.

lm-evaluation-harness differs: "strict-match" has no rule 3, "flexible-extract" has no rule 2, and neither reads other
digits or separators than English ones.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

from t5flan.data.records.fields import require_field
from t5flan.data.records.rows import read_rows
from t5flan.errors import UserError
from t5flan.scoring.answers import find_number
from t5flan.scoring.benchmark import Benchmark, Question, after_space, find_folder
from t5flan.scoring.numbers import read_numbers

SHOTS = 8
_HERE = Path(__file__).parent
LANGUAGES: dict[str, dict[str, Any]] = json.loads((_HERE / 'mgsm.json').read_text('utf-8'))['languages']
_GSM8K = json.loads((_HERE / 'gsm8k.json').read_text('utf-8'))['exemplars']
_ENGLISH = {'question': 'Q: ', 'triggers': ['The answer is', '####'], 'comma': False}


class _Math(Benchmark):
    metric = 'accuracy'
    shots = SHOTS
    max_new_tokens = 512

    def _language(self, task: str) -> dict[str, Any]:
        raise NotImplementedError

    def stop_strings(self, task: str) -> tuple[str, ...]:
        """The labels of the next question, in the language itself and in English."""
        return after_space(*_labels(self._language(task)['question']))

    def extract(self, completion: str, task: str) -> str | None:
        """The number that answers the question, as the rule of this module says."""
        language = self._language(task)
        return find_number(_before_question(completion, language['question']), language['triggers'], language['comma'])

    def is_right(self, answer: str, target: Any, task: str) -> bool:
        """Whether the numbers are equal."""
        return [answer] == read_numbers(str(target))[-1:]


class GradeSchoolMath(_Math):
    """GSM8K."""

    name = 'gsm8k'
    known_tasks = ('gsm8k',)

    def _language(self, task: str) -> dict[str, Any]:
        return _ENGLISH

    def tasks(self, folder: str) -> list[str]:
        """['gsm8k'], if the folder has test.jsonl."""
        find_folder(folder, ['gsm8k', 'grade_school_math/data'], ['test.jsonl'], self.name)
        return ['gsm8k']

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The questions of test.jsonl."""
        root = find_folder(folder, ['gsm8k', 'grade_school_math/data'], ['test.jsonl'], self.name)
        exemplars = tuple(f'Q: {one["question"]}\nA: {one["answer"]}\n\n' for one in _GSM8K)
        questions: list[Question] = []
        for row in read_rows(str(root / 'test.jsonl')):
            if limit is not None and len(questions) >= limit:
                break
            question, answer = (require_field(row.value, name, row.where, '--benchmark_dir') for name in _GSM8K[0])
            numbers = read_numbers(answer.rpartition('####')[2])
            if not numbers:
                raise UserError(f'{row.where}: the answer does not end with "#### NUMBER". Get the original file.')
            questions.append(Question(task, len(questions), exemplars, f'Q: {question}\nA:', numbers[-1]))
        return questions


class MultilingualMath(_Math):
    """MGSM. A task is a language's code."""

    name = 'mgsm'
    known_tasks = tuple(LANGUAGES)
    categories = {'10 languages': tuple(code for code in LANGUAGES if code != 'en')}
    reported = '10 languages'

    def _language(self, task: str) -> dict[str, Any]:
        return LANGUAGES[task]

    def tasks(self, folder: str) -> list[str]:
        """The languages whose .tsv files are there."""
        root = find_folder(folder, ['mgsm'], ['mgsm_*.tsv'], self.name)
        return [code for code in LANGUAGES if (root / f'mgsm_{code}.tsv').is_file()]

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The questions of a language."""
        root = find_folder(folder, ['mgsm'], [f'mgsm_{task}.tsv'], self.name)
        language, exemplars = LANGUAGES[task], _exemplars(root, task)
        questions: list[Question] = []
        path = root / f'mgsm_{task}.tsv'
        for number, line in enumerate(path.read_text('utf-8-sig').split('\n'), 1):
            if not line.strip():
                continue
            question, tab, answer = line.rstrip('\r').partition('\t')
            numbers = read_numbers(answer)
            if not tab or len(numbers) != 1:
                raise UserError(
                    f'{path} line {number}: expected a question, a tab and a number. Get the original file.'
                )
            text = f'{language["question"]}{question}\n{language["answer"]}'
            questions.append(Question(task, len(questions), exemplars, text, numbers[0]))
        if not questions:
            raise UserError(f'{path} is empty. Get the original file.')
        return questions[:limit]


def _exemplars(root: Path, code: str) -> tuple[str, ...]:
    """The exemplars of a language: from exemplars.json, or the exemplars.py of the release, which is not run."""
    path = next((root / name for name in ('exemplars.json', 'exemplars.py') if (root / name).is_file()), None)
    if path is None:
        raise UserError(f'{root} has no exemplars.py, the exemplars of MGSM. Copy it there from the release.')
    try:
        text = path.read_text('utf-8')
        if path.suffix == '.json':
            found = json.loads(text)['MGSM_EXEMPLARS']
        else:
            [found] = [
                ast.literal_eval(node.value)
                for node in ast.parse(text).body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'MGSM_EXEMPLARS'
            ]
        ordered = sorted(found[code].items(), key=lambda item: int(item[0]))
        exemplars = tuple(f'{one["q"]}\n{one["a"]}\n\n' for _, one in ordered)
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError):
        raise UserError(f'{path} has no MGSM_EXEMPLARS of the language {code!r}. Get the original file.') from None
    if len(exemplars) < SHOTS:
        raise UserError(f'{path} has {len(exemplars)} exemplars of {code!r}, expected {SHOTS}. Get the original file.')
    return exemplars[:SHOTS]


def _labels(prefix: str) -> tuple[str, ...]:
    """What a question can start with: the language's own label or an English one."""
    return tuple(dict.fromkeys((prefix.strip(), 'Question:', 'Q:')))


def _before_question(completion: str, prefix: str) -> str:
    """The completion up to the next question, which starts a line or follows a space."""
    pattern = '|'.join(map(re.escape, _labels(prefix)))
    return re.split(rf'(?:^|\s)(?:{pattern})', completion, maxsplit=1)[0]
