"""Which of a question's sampled rationales are kept: their answers, votes and filters."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence

from t5flan.errors import UsageError
from t5flan.scoring.answers import TRIGGER, clean, extract_number, normalize_answer, normalize_space, split_answer
from t5flan.synthesis.filters import copied, length_fault, repetition


@dataclasses.dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        text: the question.
        answers: the right answers.
        asks: whether the text already asks for a rationale.
    """

    text: str
    answers: tuple[str, ...]
    asks: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sampled rationale and its answer; both are '' if it has none.

    Attributes:
        rationale: the text before the answer.
        answer: the answer.
        text: what the model wrote.
        ended: whether it ended before the limit of tokens.
        fault: the filter that rejects the rationale, or ''.
    """

    rationale: str
    answer: str
    text: str = dataclasses.field(default='', compare=False)
    ended: bool = dataclasses.field(default=True, compare=False)
    fault: str = dataclasses.field(default='', compare=False)


@dataclasses.dataclass(frozen=True)
class Kept:
    """A rationale that is written to the file.

    Attributes:
        index: the question's index in its split.
        answer: the rationale's answer.
        rationale: the text before the answer.
        agreement: the share of the question's samples with this answer.
        right: whether the answer is right.
        log_likelihood: of the rationale by the model itself, nats for each token; None if it was not asked for.
    """

    index: int
    answer: str
    rationale: str
    agreement: float
    right: bool
    log_likelihood: float | None = None


def parse(text: str, answer_words: Sequence[str] = (TRIGGER,), is_number: bool = False) -> Sample:
    """Splits a text at its answer, see `scoring.answers.split_answer`.

    >>> parse('3 and 4 are 7. So the answer is 7.')
    Sample(rationale='3 and 4 are 7.', answer='7', text='3 and 4 are 7. So the answer is 7.', ended=True, fault='')
    """
    found = split_answer(text, answer_words, is_number)
    return Sample(found.before, found.answer, text)


def has_number(question: 'Question') -> bool:
    """Whether all right answers of a question are numbers, such as '$1,000'."""
    return bool(question.answers) and all(
        extract_number(answer) is not None and not re.search(r'[^\W\d_]', answer) for answer in question.answers
    )


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which rationales are rejected.

    Attributes:
        min_words: fewer words are too short.
        max_words: more words are too long.
        repetition: the largest share of runs of 4 words that repeat an earlier one.
        copying: the largest share of runs of 5 words that the question has too.

    Raises:
        UsageError: a value is out of range.
    """

    min_words: int = 3
    max_words: int = 400
    repetition: float = 0.5
    copying: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words:
            raise UsageError(
                f'--min_words={self.min_words} and --max_words={self.max_words}, expected 0 or more in ascending order'
            )
        for name in ('repetition', 'copying'):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f'--{name}={getattr(self, name)}, expected a share from 0 to 1')

    def fault(self, rationale: str, question: str) -> str:
        """The filter that rejects a rationale, or ''."""
        if fault := length_fault(rationale, self.min_words, self.max_words):
            return fault
        if repetition(rationale) > self.repetition:
            return 'repetition'
        return 'copies the question' if copied(rationale, question) > self.copying else ''


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are equal up to spaces and case, as numbers, or after SQuAD's normalization.

    >>> same_answer('$1,000', '1000.0'), same_answer('The cat', 'cat'), same_answer('(A)', '(B)')
    (True, True, False)
    """
    if normalize_space(clean(a)).casefold() == normalize_space(clean(b)).casefold():
        return True
    number_a, number_b = extract_number(a), extract_number(b)
    if number_a is not None and number_b is not None and not re.search(r'[^\W\d_]', a + b):
        return float(number_a) == float(number_b)
    return normalize_answer(a) == normalize_answer(b) != ''


def choose(
    index: int, question: Question, samples: Sequence[Sample], keep: str, each: int = 1, agreement: float = 0.5
) -> list[Kept]:
    """The samples of one question to keep: different rationales of a single answer, the most frequent first.

    Samples that a filter rejects count as votes but are not kept.
    """
    groups: list[list[Sample]] = []  # samples with the same answer, in order of their first one
    for one in samples:
        if not (one.answer and one.rationale):
            continue
        group = next((group for group in groups if same_answer(group[0].answer, one.answer)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    for group in groups:
        right = next((answer for answer in question.answers if same_answer(group[0].answer, answer)), None)
        share = len(group) / len(samples)
        is_vote = len(group) == max(map(len, groups)) and share >= agreement
        if right is not None if keep == 'right' else is_vote:  # the first of several answers with equal votes
            answer = group[0].answer if right is None else right
            group = [one for one in group if not one.fault]
            alike = collections.Counter(normalize_space(one.rationale) for one in group)
            first = {normalize_space(one.rationale): one.rationale for one in reversed(group)}
            texts = [first[text] for text, _ in alike.most_common(each)]  # of equal ones the first drawn
            return [Kept(index, answer, text, share, right is not None) for text in texts]
    return []


def count(questions: Sequence[Question], samples: Sequence[Sequence[Sample]], kept: Sequence[Kept]) -> dict[str, int]:
    """Numbers of questions, samples ('draws'), samples with an answer, right samples, and rationales kept."""
    answered = [
        (question, one)
        for question, group in zip(questions, samples, strict=True)
        for one in group
        if one.answer and one.rationale
    ]
    right = sum(any(same_answer(one.answer, answer) for answer in question.answers) for question, one in answered)
    return {
        'questions': len(questions),
        'draws': sum(map(len, samples)),
        'with_answer': len(answered),
        'right': right,
        'kept': len(kept),
        'questions_kept': len({one.index for one in kept}),
        'kept_right': sum(one.right for one in kept),
    }


def why_none(samples: Sequence[Sequence[Sample]], counts: Mapping[str, int]) -> str:
    """One line: why no rationale was kept, most likely, and three draws."""
    drawn = [one for group in samples for one in group]
    faults = collections.Counter(one.fault for one in drawn if one.fault)
    ended = sum(one.ended for one in drawn)
    if ended < len(drawn) / 2:
        reason = f'{len(drawn) - ended} of {len(drawn)} draws did not end: increase --max_new_tokens'
    elif not any(one.answer for one in drawn):
        reason = 'no draw announces an answer: show how with --exemplars, or train the model on rationales first'
    elif not counts['with_answer']:
        reason = 'the draws are answers without a rationale: show some with --exemplars, or set --trigger'
    elif sum(faults.values()) >= counts['with_answer'] / 2:
        name, number = faults.most_common(1)[0]
        reason = f'filters reject {number} rationales as {name!r}: relax that filter'
    else:
        reason = 'the answers are not right, or too few agree: increase --samples, or use a stronger model'
    shown = '; '.join(f'{" ".join(one.text.split())[:100]!r}' for one in drawn[:: max(1, len(drawn) // 3)][:3])
    return f'{reason}. Three draws: {shown}'
