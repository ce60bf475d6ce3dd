"""`t5flan rationales`: a model's own rationales for a task, filtered by their answers, as a new chain-of-thought file.

    t5flan rationales --checkpoint=runs/mine --task=cot_gsm8k --samples=8 --keep=right --output=gsm8k_sampled.tsv

Several rationales are sampled for every question of a split. Those are kept whose answer is right (`right`: STaR,
arXiv:2203.14465), or is the answer of most samples, whatever the file says (`vote`: self-consistency, arXiv:2203.11171,
as labels in arXiv:2210.11610). A sample counts if it ended, announced an answer and has text before it.

DataConfig.cot reads the file like any other: a .tsv of question, answer and rationale, or a .jsonl with the CoT
Collection's fields and the origin of each row. OUTPUT.provenance.json beside it has checkpoint, step, settings, counts.
"""

import collections
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.decoding.config import SAMPLING, Decoding
from t5flan.errors import UsageError, UserError
from t5flan.files import write_json, write_whole
from t5flan.language_model import LanguageModel, load
from t5flan.scoring.answers import TRIGGER, clean, extract_answer, extract_number, normalize_answer, normalize_space
from t5flan.version import __version__

KEEP = ('right', 'vote')
SUFFIXES = ('.tsv', '.jsonl')
PROVENANCE = '.provenance.json'


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
    """A sampled rationale and its answer; both are '' if it has none."""

    rationale: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Kept:
    """A rationale that is written to the file.

    Attributes:
        index: the question's index in its split.
        answer: the rationale's answer.
        rationale: the text before the answer.
        agreement: the share of the question's samples with this answer.
        right: whether the answer is right.
    """

    index: int
    answer: str
    rationale: str
    agreement: float
    right: bool


def rationales(
    checkpoint: str,
    task: str,
    output: str,
    *,
    keep: str = 'right',
    split: str = 'train',
    limit: int | None = None,
    each: int = 1,
    agreement: float = 0.5,
    trigger: str | None = None,
    answer_words: Sequence[str] = (TRIGGER,),
    step: int | None = None,
    decoding: Decoding = SAMPLING,
    json_file: str | None = None,
) -> dict[str, Any]:
    """Samples and filters rationales, writes `output` and its provenance, and prints the counts.

    Args:
        task: a SeqIO task. Its questions are used as they are, or its zero-shot prompts if it has no questions.
        keep: 'right' or 'vote'.
        limit: only the first N questions; None is all.
        each: at most N different rationales of a question are kept.
        agreement: for 'vote', the smallest share of the samples that must have the answer.
        trigger: the sentence that asks for a rationale; '' adds none. None is the first of InstructionConfig.triggers,
            for prompts that do not ask for one.
        answer_words: the phrases that announce an answer, one for each language.
        decoding: its num_samples is the number of rationales sampled for each question.

    Returns:
        The provenance.

    Raises:
        UsageError: a setting is out of range.
        UserError: no such checkpoint, task or split, or no rationale was kept.
    """
    _check_settings(output, keep, each, agreement, decoding)
    questions, whole = read_questions(task, split, limit, answer_words)
    model = load(checkpoint, step)
    samples = sample(model, [prompt_of(question, trigger) for question in questions], decoding, answer_words)
    kept = [
        one
        for index, (question, group) in enumerate(zip(questions, samples, strict=True))
        for one in choose(index, question, group, keep, each, agreement)
    ]
    provenance: dict[str, Any] = {
        'made_by': f't5flan {__version__}',
        'checkpoint': model.folder,
        'step': model.step,
        'task': task,
        'split': split,
        'samples': decoding.num_samples,
        'keep': keep,
        'each': each,
        **({'agreement': agreement} if keep == 'vote' else {}),
        'trigger': trigger,
        **{name: getattr(decoding, name) for name in ('temperature', 'top_k', 'top_p')},
        'max_new_tokens': decoding.max_new_tokens or model.max_new_tokens,
        'seed': decoding.seed,
        'whole_prompts': whole,
        'prompts_ask': whole and all(question.asks for question in questions),
        'counts': count(questions, samples, kept),
    }
    if not kept:
        raise UserError(
            f'{task}: none of {decoding.num_samples} rationales for each of {len(questions)} questions was kept '
            f'({provenance["counts"]}). Increase --samples or --temperature, or train the model on rationales first.'
        )
    write(Path(output), questions, kept, task, provenance)
    found = provenance['counts']
    print(
        f'{output}: {found["kept"]:,} rationales of {found["questions_kept"]:,} questions kept; {found["questions"]:,} '
        f'questions, {found["with_answer"]:,} of {found["draws"]:,} samples with an answer, {found["right"]:,} right'
    )
    if json_file is not None:
        write_json(json_file, provenance, indent=2)
    return provenance


def _check_settings(output: str, keep: str, each: int, agreement: float, decoding: Decoding) -> None:
    if keep not in KEEP:
        raise UsageError(f'--keep={keep}, expected {" or ".join(KEEP)}')
    if not output.endswith(SUFFIXES):
        raise UsageError(f'--output={output}, expected a file name that ends in {" or ".join(SUFFIXES)}')
    if each < 1:
        raise UsageError(f'--each={each}, expected an integer of 1 or more')
    if not 0 < agreement <= 1:
        raise UsageError(f'--agreement={agreement}, expected a number above 0 and at most 1')
    if decoding.num_samples > 1 and decoding.greedy:
        raise UsageError(
            f'--temperature=0 returns the same rationale {decoding.num_samples} times: set it above 0, or --samples=1'
        )


def read_questions(
    task: str, split: str, limit: int | None, answer_words: Sequence[str] = (TRIGGER,)
) -> tuple[list[Question], bool]:
    """The questions of a task, and whether they are whole prompts.

    Records with 'question' and 'answer' (cot_... tasks) are used directly; other tasks give their zero-shot prompts.

    Raises:
        UserError: `task` is unknown or a mixture, or it does not have the split.
    """
    found = find_mixture(task)
    if not hasattr(found, 'source'):
        raise UserError(f'{task} is a mixture, expected one task. Set --task to one of its {len(found.tasks)} tasks.')
    if isinstance(found.source, IndexedSource):
        records = found.source.records(split)
        if all(isinstance(records[0].get(name), str) for name in ('question', 'answer')):
            number = len(records) if limit is None else min(limit, len(records))
            return [Question(row['question'], (row['answer'],)) for row in (records[i] for i in range(number))], False
    data = DataConfig(
        mixture=task,
        batch_size=1,
        feature_lengths={'inputs': 2**16, 'targets': 2**16},
        vocabulary='bytes',
        split=split,
        shuffle=False,
        instructions=InstructionConfig(few_shot=0.0, options=1.0, rationale=0.0, inverted=0.0, negative_examples=0.0),
    )
    questions = []
    for example in eval_examples(data, ByteVocabulary(), task, limit):
        target = example['targets_pretokenized']
        answers = found.postprocess_fn(target, example=example, is_target=True)
        answers = (answers,) if isinstance(answers, str) else tuple(map(str, answers))
        asks = bool(extract_answer(target, answer_words, default=''))
        questions.append(Question(example['inputs_pretokenized'], answers, asks))
    return questions, True


def prompt_of(question: Question, trigger: str | None) -> str:
    """The question, followed by the trigger; `trigger=None` adds the default one where the question does not ask."""
    if trigger is None:
        trigger = '' if question.asks else InstructionConfig().triggers[0]
    return f'{question.text.rstrip()}\n{trigger}' if trigger else question.text


def sample(
    model: LanguageModel, prompts: Sequence[str], decoding: Decoding, answer_words: Sequence[str]
) -> list[list[Sample]]:
    """`decoding.num_samples` samples for each prompt; those of one depend on its index and the seed only."""
    sampled: list[list[Sample]] = []
    window = 8 * decoding.batch_size
    for start in range(0, len(prompts), window):
        inputs = [model.input_ids(text) for text in prompts[start : start + window]]
        sampled += [
            [parse(one.text(model.vocabulary), answer_words) if one.ended else Sample('', '') for one in group]
            for group in model.generate_ids(inputs, decoding=decoding, rows=range(start, start + len(inputs)))
        ]
        print(f'{len(sampled)} of {len(prompts)} questions', file=sys.stderr, flush=True)
    return sampled


def parse(text: str, answer_words: Sequence[str] = (TRIGGER,)) -> Sample:
    """Splits a text at the last announcement of an answer.

    >>> parse('3 and 4 are 7. So the answer is 7.')
    Sample(rationale='3 and 4 are 7.', answer='7')
    >>> parse('7')
    Sample(rationale='', answer='')
    """
    places = [match.start() for words in answer_words for match in re.finditer(re.escape(words), text, re.IGNORECASE)]
    answer = extract_answer(text, answer_words, default='')
    return Sample(text[: max(places)].strip(), answer) if places and answer else Sample('', '')


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
    """The samples of one question to keep: different rationales of a single answer, the most frequent first."""
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


def write(
    path: Path, questions: Sequence[Question], kept: Sequence[Kept], task: str, provenance: Mapping[str, Any]
) -> None:
    """Writes the file and its provenance; each appears whole or not at all."""
    lines = []
    for one in kept:
        question = questions[one.index].text
        if path.suffix == '.tsv':
            lines.append('\t'.join(_cell(text) for text in (question, one.answer, one.rationale)))
        else:
            row = {
                'source': question,
                'target': one.answer,
                'rationale': one.rationale,
                'type': 'CoT',
                'sampled_for': task,
                'index': one.index,
                'agreement': round(one.agreement, 4),
                'right': one.right,
            }
            lines.append(json.dumps(row, ensure_ascii=False))
    write_json(path.with_name(path.name + PROVENANCE), provenance, indent=2)
    write_whole(path, ('\n'.join(lines) + '\n').encode('utf-8', 'replace'))


def _cell(text: str) -> str:
    r"""A text as a cell of FLAN's TSV: a line break becomes \n (two characters), a tab a space."""
    return text.strip().replace('\r', '').replace('\n', '\\n').replace('\t', ' ')
