r"""Rows of published data sets that are neither inputs and targets nor a question, an answer and a rationale.

T0's export (P3) has token ids in 'inputs' and the text in 'inputs_pretokenized'. The data sets of zero-shot chain of
thought (arXiv:2205.11916) have fields of their own:

    AddSub, SingleEq, MultiArith   sQuestion, lSolutions
    SVAMP                          Body, Question, Answer
    AQuA                           question, options 'A)21', correct, rationale
    GSM8K                          question, answer '… #### 42'
    CommonsenseQA, ARC             question.stem and .choices, or question and choices; answerKey
    BIG-bench                      input, target_scores {option: 0 or 1}
    coin flip, last letters        question, answer

FLAN 2022's exports have 'inputs' and 'targets' already, beside '_template_type', '_task_name' and others.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_CALCULATED = re.compile(r'<<[^<>]*>>')
_LETTER = re.compile(r'\s*\(?([A-Za-z])[).:]\s*')
_NAMES_LETTER = re.compile(r'\b(?:answer|option|choice)s?\W+(?:is\W+)?[A-E]\b', re.IGNORECASE)
_BESIDE = ('id', 'index', 'idx', 'task')
"""Fields that a row of question and answer may have besides these."""


def inputs_and_targets(row: Row) -> Row:
    """The row with texts in 'inputs' and 'targets', if it is of T0's export; any other row as it is."""
    texts = {name: row.get(f'{name}_pretokenized') for name in ('inputs', 'targets')}
    is_export = all(isinstance(text, str) for text in texts.values())
    return {**row, **texts} if is_export and not isinstance(row.get('inputs'), str) else row


def is_wrong_option(row: Row) -> bool:
    """Whether a row of T0's export is one of the wrong answers that rank classification scores."""
    return row.get('is_correct') is False and 'inputs_pretokenized' in row


def as_question(row: Row) -> dict[str, Any] | None:
    """{'question', 'answer', 'rationale'} and perhaps 'options' of a row as published; None for other rows.

    The rationale is empty where the data set has none.

    >>> as_question({'sQuestion': 'Add 1 and 2.', 'lSolutions': [3.0]})
    {'question': 'Add 1 and 2.', 'answer': '3', 'rationale': ''}
    """
    for has, make in _FORMATS:
        if has(row):
            try:
                made = make(row)
            except (AttributeError, KeyError, TypeError):  # fields of that name with something else in them
                continue
            if made is not None and all(isinstance(text, str) for text in made.get('options', ())):
                return made if 'rationale' in made else {**made, 'rationale': ''}
    return None


def _solved(row: Row) -> dict[str, Any] | None:
    solutions = row['lSolutions']
    return (
        {'question': row['sQuestion'].strip(), 'answer': _number(solutions[0]), 'rationale': ''} if solutions else None
    )


def _body(row: Row) -> dict[str, Any]:
    return {'question': f'{row["Body"].strip()} {row["Question"].strip()}', 'answer': _number(row['Answer'])}


def _number(value: Any) -> str:
    return str(value).strip().removesuffix('.0')


def _lettered(row: Row) -> dict[str, Any] | None:
    """AQuA; a rationale that names the letter of the answer needs the letters in the question."""
    texts = [_LETTER.sub('', option, count=1).strip() for option in row['options']]
    number = ord(row['correct'].strip().upper()[:1] or '?') - ord('A')
    if not 0 <= number < len(texts):
        return None
    rationale = row['rationale'].strip() if isinstance(row.get('rationale'), str) else ''
    if _NAMES_LETTER.search(rationale):
        letters = [f'({chr(ord("A") + i)})' for i in range(len(texts))]
        listed = '\n'.join(f'{letter} {text}' for letter, text in zip(letters, texts, strict=True))
        question = f'{row["question"].strip()}\nOptions:\n{listed}'
        return {'question': question, 'answer': letters[number], 'rationale': rationale}
    return {'question': row['question'].strip(), 'answer': texts[number], 'rationale': rationale, 'options': texts}


def _chosen(row: Row) -> dict[str, Any] | None:
    """CommonsenseQA and ARC."""
    inside = row['question'] if isinstance(row['question'], Mapping) else {}
    question, choices = inside.get('stem', row['question']), inside.get('choices', row.get('choices'))
    if isinstance(choices, Mapping):  # as the Hugging Face hub has it: a list of labels and one of texts
        choices = [{'label': label, 'text': text} for label, text in zip(choices['label'], choices['text'])]
    texts = {choice['label']: choice['text'] for choice in choices}
    if not isinstance(question, str) or row['answerKey'] not in texts:
        return None
    return {'question': question.strip(), 'answer': texts[row['answerKey']], 'options': list(texts.values())}


def _scored(row: Row) -> dict[str, Any] | None:
    """BIG-bench."""
    scores = row['target_scores']
    best = max(scores, key=lambda option: scores[option] or 0, default=None)
    return None if best is None else {'question': row['input'].strip(), 'answer': best, 'options': list(scores)}


def _answered(row: Row) -> dict[str, Any]:
    """GSM8K, coin flip, last letters."""
    rationale, mark, answer = row['answer'].rpartition('####')
    rationale = _CALCULATED.sub('', rationale).strip() if mark else ''
    return {'question': row['question'].strip(), 'answer': answer.strip(), 'rationale': rationale}


def _has(**kinds: type | tuple[type, ...]) -> Callable[[Row], bool]:
    """Whether a row has these fields, of these kinds."""
    return lambda row: all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def _is_plain(row: Row) -> bool:
    return _has(question=str, answer=str)(row) and not set(row) - {'question', 'answer', *_BESIDE}


_FORMATS: Sequence[tuple[Callable[[Row], bool], Callable[[Row], dict[str, Any] | None]]] = (
    (_has(sQuestion=str, lSolutions=list), _solved),
    (_has(Body=str, Question=str, Answer=(str, int, float)), _body),
    (_has(question=str, options=list, correct=str), _lettered),
    (_has(question=(str, Mapping), answerKey=str), _chosen),
    (_has(input=str, target_scores=Mapping), _scored),
    (_is_plain, _answered),
)
