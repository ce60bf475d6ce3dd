"""TyDiQA-GoldP (Clark et al. 2020, arXiv:2003.05002): questions about a passage in nine languages, 1-shot.

Reads SQuAD 1.1 JSON, a file for each language: LANGUAGE_tydiqa_dev.json or tydiqa-goldp-dev-LANGUAGE.json. The exemplar
is the language's first question in tydiqa-goldp-v1.1-train.json; without that file it is the first question of the dev
file, which is then not asked.

The answer is the first line of a completion that is not blank, up to a next passage or question. Exact match and F1
after SQuAD's normalization, the best over a question's answers. The Flan papers report the mean exact match of the
eight languages other than English.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from t5flan.errors import UserError
from t5flan.scoring.answers import clean, normalize_answer
from t5flan.scoring.benchmark import Answer, Benchmark, Metrics, Question, after_space, find_folder
from t5flan.scoring.metrics import token_f1
from t5flan.scoring.voting import vote

LANGUAGES = ('arabic', 'bengali', 'english', 'finnish', 'indonesian', 'korean', 'russian', 'swahili', 'telugu')
_FILES = ('{}_tydiqa_dev.json', 'tydiqa-goldp-dev-{}.json')
_FOLDERS = ('tydiqa_goldp', 'tydiqa')
_TRAIN = 'tydiqa-goldp-v1.1-train.json'
_NEXT = re.compile(r'(?:^|\s)(?:Passage|Question):')


class _Item(NamedTuple):
    language: str
    passage: str
    question: str
    answers: list[str]


class TypologicallyDiverse(Benchmark):
    """TyDiQA-GoldP. A task is a language."""

    name = 'tydiqa'
    metric = 'exact_match'
    shots = 1
    max_new_tokens = 64
    categories = {'8 languages': tuple(language for language in LANGUAGES if language != 'english')}
    reported = '8 languages'
    known_tasks = LANGUAGES

    def tasks(self, folder: str) -> list[str]:
        """The languages whose files are there."""
        root = find_folder(folder, _FOLDERS, [name.format('*') for name in _FILES], self.name)
        return [language for language in LANGUAGES if _path(root, language) is not None]

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The questions of a language."""
        root = find_folder(folder, _FOLDERS, [name.format(task) for name in _FILES], self.name)
        path = _path(root, task)
        assert path is not None
        items = list(_items(path))
        train = root / _TRAIN
        if train.is_file():
            shown = next((item for item in _items(train) if item.language == task), None)
            if shown is None:
                raise UserError(f'{train} has no question of the language {task!r}. Get the original file.')
        else:
            shown, items = items[0], items[1:]
        exemplar = f'{_worded(shown)} {shown.answers[0]}\n\n'
        return [Question(task, i, (exemplar,), _worded(one), one.answers) for i, one in enumerate(items[:limit])]

    def stop_strings(self, task: str) -> tuple[str, ...]:
        """The labels of the next passage or question."""
        return after_space('Passage:', 'Question:')

    def extract(self, completion: str, task: str) -> str | None:
        """The first line that is not blank."""
        return clean(_NEXT.split(completion, maxsplit=1)[0].strip().partition('\n')[0]) or None

    def judge(self, answer: Answer) -> Metrics:
        """exact_match and f1."""
        given = vote([self.extract(sample, answer.task) for sample in answer.samples])
        targets = [answer.target] if isinstance(answer.target, str) else answer.target
        text = given or ''
        matches = any(normalize_answer(target) == normalize_answer(text) for target in targets)
        f1 = max((token_f1(target, text) for target in targets), default=0.0)
        return {'exact_match': float(matches), 'f1': f1, 'no_answer': float(given is None)}


def _worded(item: _Item) -> str:
    return f'Passage: {item.passage}\nQuestion: {item.question}\nAnswer:'


def _path(root: Path, language: str) -> Path | None:
    paths = [root / name.format(language) for name in _FILES]
    return next((path for path in paths if path.is_file()), None)


def _items(path: Path) -> Iterator[_Item]:
    """The questions of a file; their ids begin with the language."""
    try:
        content: Any = json.loads(path.read_text('utf-8'))
        found = [
            _Item(str(one['id']).partition('-')[0], passage['context'], one['question'], _texts(one))
            for article in content['data']
            for passage in article['paragraphs']
            for one in passage['qas']
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} is not SQuAD 1.1 JSON with answers. Get the original file.') from None
    if not found:
        raise UserError(f'{path} has no questions. Get the original file.')
    yield from found


def _texts(question: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(one['text'] for one in question['answers'])) or _no_answers()


def _no_answers() -> list[str]:
    raise KeyError('answers')
