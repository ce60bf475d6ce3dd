"""Translation between English and other languages, 5-shot: corpus BLEU and chrF of sacrebleu (Post 2018, W18-6319).

Reads XXX-eng.tsv (a sentence, a tab, its English translation), as Tatoeba's test sets in LASER are laid out, XXX an
ISO 639-3 code. A task is a direction, such as deu-eng or eng-deu. The first five pairs are the exemplars and are not
asked. The translation is the first line of a completion that is not blank, up to the next sentence's label.

BLEU splits Chinese as sacrebleu's tokenizer zh does, and Japanese and Korean into characters; other targets as 13a.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, Benchmark, Metrics, Question, after_space, find_folder
from t5flan.scoring.metrics import corpus_scores

SHOTS = 5
_LANGUAGES: dict[str, str] = json.loads((Path(__file__).parent / 'translation.json').read_text('utf-8'))['languages']
_TOKENIZERS = {'cmn': 'zh', 'jpn': 'char', 'kor': 'char'}
_FOLDERS = ('parallel/tatoeba', 'tatoeba', 'parallel')
_NEXT = re.compile(rf'(?:^|\s)(?:{"|".join(_LANGUAGES.values())}):')


class Translation(Benchmark):
    """Translation. A task is a direction."""

    name = 'translation'
    metric = 'bleu'
    shots = SHOTS
    max_new_tokens = 256
    categories = {
        'into English': tuple(f'{code}-eng' for code in _LANGUAGES if code != 'eng'),
        'from English': tuple(f'eng-{code}' for code in _LANGUAGES if code != 'eng'),
    }

    def tasks(self, folder: str) -> list[str]:
        """Both directions of every file that is there."""
        root = find_folder(folder, _FOLDERS, ['*-eng.tsv'], self.name)
        codes = sorted(path.name.removesuffix('-eng.tsv') for path in root.glob('*-eng.tsv'))
        codes = [code for code in codes if code in _LANGUAGES]
        return [*(f'{code}-eng' for code in codes), *(f'eng-{code}' for code in codes)]

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The sentences of a direction."""
        source, _, target = task.partition('-')
        name = f'{source if target == "eng" else target}-eng.tsv'
        path = find_folder(folder, _FOLDERS, [name], self.name) / name
        pairs = []
        for number, line in enumerate(path.read_text('utf-8-sig').split('\n'), 1):
            if line.strip():
                cells = line.rstrip('\r').split('\t')
                if len(cells) != 2 or not all(cell.strip() for cell in cells):
                    raise UserError(
                        f'{path} line {number}: expected a sentence, a tab and its translation. Fix the file.'
                    )
                pairs.append(cells if target == 'eng' else cells[::-1])
        if len(pairs) <= SHOTS:
            raise UserError(
                f'{path} has {len(pairs)} pairs, expected {SHOTS} exemplars and more. Get the original file.'
            )
        word = lambda text: f'{_LANGUAGES[source]}: {text}\n{_LANGUAGES[target]}:'
        exemplars = tuple(f'{word(one)} {other}\n\n' for one, other in pairs[:SHOTS])
        asked = pairs[SHOTS:][:limit]
        return [Question(task, i, exemplars, word(one), other) for i, (one, other) in enumerate(asked)]

    def stop_strings(self, task: str) -> tuple[str, ...]:
        """The label of the next sentence."""
        return after_space(*(f'{language}:' for language in _LANGUAGES.values()))

    def extract(self, completion: str, task: str) -> str | None:
        """The first line that is not blank."""
        return _NEXT.split(completion, maxsplit=1)[0].strip().partition('\n')[0].strip() or None

    def judge(self, answer: Answer) -> Metrics:
        """Whether there is a translation; BLEU and chrF belong to whole tasks."""
        return {'no_answer': float(self.extract(answer.samples[0], answer.task) is None)}

    def summarize(self, answers: Sequence[Answer], judged: Sequence[Metrics]) -> Metrics:
        """Corpus BLEU and chrF of a task's first samples."""
        given = [self.extract(answer.samples[0], answer.task) or '' for answer in answers]
        targets: list[Any] = [answer.target for answer in answers]
        tokenizer = _TOKENIZERS.get(answers[0].task.partition('-')[2], '13a')
        return {**corpus_scores(targets, given, tokenizer), **super().summarize(answers, judged)}
