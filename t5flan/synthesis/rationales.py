"""`t5flan rationales`: a model's own rationales for a task, those that reach the right answer, as a new chain-of-thought file.

    t5flan rationales --checkpoint=runs/mine --task=cot_gsm8k --samples=8 --keep=right --output=gsm8k_sampled.tsv

For every question of the task's split several rationales are drawn. Kept are those whose answer is right (`right`: STaR,
arXiv:2203.14465), or is the one that most of the draws reach, whatever the file says (`vote`: self-consistency,
arXiv:2203.11171, as labels in arXiv:2210.11610). A draw counts if it ended, announced an answer and said something before it.

The file is read by DataConfig.cot like any other: a .tsv of question, answer, rationale, or a .jsonl with the CoT Collection's
fields and where each row comes from. Beside it stands OUTPUT.provenance.json: checkpoint, step, settings, counts.
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
from t5flan.data.config import DataConfig, InstructionConfig
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.records.sources import IndexedSource
from t5flan.decoding.sampling import Sampling
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
    """What is asked, and the answers that are right."""

    text: str
    answers: tuple[str, ...]
    asks: bool = False
    """Whether the text asks for a rationale already."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """A sampled rationale and the answer it comes to; '' where it comes to none."""

    rationale: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Kept:
    """A rationale that is written."""

    index: int
    """Of the question in its split."""
    answer: str
    rationale: str
    agreement: float
    """Share of the question's draws with this answer."""
    right: bool


def rationales(
    checkpoint: str,
    task: str,
    output: str,
    *,
    samples: int = 8,
    keep: str = 'right',
    split: str = 'train',
    limit: int | None = None,
    each: int = 1,
    agreement: float = 0.5,
    trigger: str | None = None,
    answer_words: Sequence[str] = (TRIGGER,),
    step: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    json_file: str | None = None,
) -> dict[str, Any]:
    """Samples, keeps, writes `output` and its provenance, prints what became of the questions.

    Args:
        task: a SeqIO task; its questions as they are, or its zero-shot prompts.
        samples: draws a question.
        keep: 'right' or 'vote'.
        limit: the first so many questions; None for all.
        each: rationales kept of a question at most, different ones.
        agreement: for 'vote', the least share of the draws that must reach the answer.
        trigger: the sentence that asks for a rationale; '' adds none. None is the first of InstructionConfig.triggers, for
            prompts that do not ask already.
        answer_words: what announces an answer, in each language.

    Returns:
        The provenance.

    Raises:
        UsageError: a setting is out of its range.
        UserError: no such checkpoint, task or split, or nothing was kept.
    """
    _check_settings(output, samples, keep, each, agreement, temperature)
    asked, whole = questions(task, split, limit, answer_words)
    model = load(checkpoint, step)
    sampling = Sampling(temperature, top_k, top_p)
    prompts = [prompt_of(question, trigger) for question in asked]
    draws = draw(model, prompts, samples, sampling, answer_words, max_new_tokens, seed, batch_size)
    kept = [
        one
        for index, (question, drawn) in enumerate(zip(asked, draws, strict=True))
        for one in choose(index, question, drawn, keep, each, agreement)
    ]
    provenance = {
        'made_by': f't5flan {__version__}',
        'checkpoint': model.folder,
        'step': model.step,
        'task': task,
        'split': split,
        'samples': samples,
        'keep': keep,
        'each': each,
        **({'agreement': agreement} if keep == 'vote' else {}),
        'trigger': trigger,
        **dataclasses.asdict(sampling),
        'max_new_tokens': max_new_tokens or model.max_new_tokens,
        'seed': seed,
        'whole_prompts': whole,
        'prompts_ask': whole and all(question.asks for question in asked),
        'counts': counts(asked, draws, kept),
    }
    if not kept:
        raise UserError(
            f'{task}: of {len(asked)} questions and {samples} draws each none was kept ({provenance["counts"]}). '
            'Set --samples or --temperature higher, or train the model on rationales first.'
        )
    write(Path(output), asked, kept, task, provenance)
    _print(output, provenance)
    if json_file is not None:
        write_json(json_file, provenance, indent=2)
    return provenance


def _check_settings(output: str, samples: int, keep: str, each: int, agreement: float, temperature: float) -> None:
    if keep not in KEEP:
        raise UsageError(f'--keep={keep}: expected {" or ".join(KEEP)}')
    if not output.endswith(SUFFIXES):
        raise UsageError(f'--output={output}: expected a file that ends in {" or ".join(SUFFIXES)}')
    if samples < 1 or each < 1 or not 0 < agreement <= 1:
        raise UsageError(
            f'--samples={samples} --each={each} --agreement={agreement}: expected counts of 1 or more and a '
            'share above 0, up to 1'
        )
    if samples > 1 and temperature == 0:
        raise UsageError(f'--temperature=0 draws the same rationale {samples} times: set it above 0, or --samples=1')


def questions(
    task: str, split: str, limit: int | None, answer_words: Sequence[str] = (TRIGGER,)
) -> tuple[list[Question], bool]:
    """The questions of a task, and whether they are whole prompts.

    A task whose records have 'question' and 'answer' (cot_…) gives these; of any other the zero-shot prompts are taken.
    """
    found = find_mixture(task)
    if not hasattr(found, 'source'):
        raise UserError(f'{task} is a mixture, expected one task. Set --task to one of its {len(found.tasks)} tasks.')
    if isinstance(found.source, IndexedSource):
        records = found.source.records(split)
        if all(isinstance(records[0].get(name), str) for name in ('question', 'answer')):
            count = len(records) if limit is None else min(limit, len(records))
            return [Question(row['question'], (row['answer'],)) for row in (records[i] for i in range(count))], False
    plain = InstructionConfig(few_shot=0.0, options=1.0, rationale=0.0, inverted=0.0, negative_examples=0.0)
    data = DataConfig(
        mixture=task,
        batch_size=1,
        feature_lengths={'inputs': 2**16, 'targets': 2**16},
        vocabulary='bytes',
        split=split,
        shuffle=False,
        instructions=plain,
    )
    from t5flan.data.vocabulary.byte_level import ByteVocabulary

    asked = []
    for example in eval_examples(data, ByteVocabulary(), task, limit):
        target = example['targets_pretokenized']
        answers = found.postprocess_fn(target, example=example, is_target=True)
        answers = (answers,) if isinstance(answers, str) else tuple(map(str, answers))
        asks = bool(extract_answer(target, answer_words, default=''))
        asked.append(Question(example['inputs_pretokenized'], answers, asks))
    return asked, True


def prompt_of(question: Question, trigger: str | None) -> str:
    """The text that is asked: the question, and the trigger where it is wanted."""
    if trigger is None:
        trigger = '' if question.asks else InstructionConfig().triggers[0]
    return f'{question.text.rstrip()}\n{trigger}' if trigger else question.text


def draw(
    model: LanguageModel,
    prompts: Sequence[str],
    samples: int,
    sampling: Sampling,
    answer_words: Sequence[str],
    max_new_tokens: int | None,
    seed: int,
    batch_size: int,
) -> list[list[Draw]]:
    """`samples` draws for each prompt; what is drawn for one depends on its number and the seed alone."""
    made: list[list[Draw]] = []
    window = max(1, 8 * batch_size)
    for start in range(0, len(prompts), window):
        part = prompts[start : start + window]
        generated = model.generate_ids(
            [model.input_ids(text) for text in part],
            max_new_tokens,
            sampling,
            seed=seed,
            num_samples=samples,
            batch_size=batch_size,
            rows=range(start, start + len(part)),
        )
        made += [
            [parse(model.vocabulary.decode(one.tokens), answer_words) if one.ended else Draw('', '') for one in group]
            for group in generated
        ]
        print(f'{len(made)} of {len(prompts)} questions', file=sys.stderr, flush=True)
    return made


def parse(text: str, answer_words: Sequence[str] = (TRIGGER,)) -> Draw:
    """What stands before the last announcement of an answer, and the answer.

    >>> parse('3 and 4 are 7. So the answer is 7.')
    Draw(rationale='3 and 4 are 7.', answer='7')
    >>> parse('7')
    Draw(rationale='', answer='')
    """
    places = [match.start() for words in answer_words for match in re.finditer(re.escape(words), text, re.IGNORECASE)]
    answer = extract_answer(text, answer_words, default='')
    if not places or not answer:
        return Draw('', '')
    return Draw(text[: max(places)].strip(), answer)


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are one: but for spaces and case, as numbers, or normalized as SQuAD does.

    >>> same_answer('$1,000', '1000.0'), same_answer('The cat', 'cat'), same_answer('(A)', '(B)')
    (True, True, False)
    """
    if normalize_space(clean(a)).casefold() == normalize_space(clean(b)).casefold():
        return True
    numbers = extract_number(a), extract_number(b)
    if None not in numbers and len(re.findall(r'[^\W\d_]', a + b)) == 0:
        return float(numbers[0]) == float(numbers[1])
    words = normalize_answer(a), normalize_answer(b)
    return words[0] == words[1] != ''


def choose(
    index: int, question: Question, drawn: Sequence[Draw], keep: str, each: int = 1, agreement: float = 0.5
) -> list[Kept]:
    """The draws of one question that are kept, the first of those that read alike."""
    usable = [one for one in drawn if one.answer and one.rationale]
    groups: list[list[Draw]] = []  # draws of one answer together, in the order the answers came
    for one in usable:
        group = next((group for group in groups if same_answer(group[0].answer, one.answer)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    chosen = []
    for group in groups:
        answer = next((answer for answer in question.answers if same_answer(group[0].answer, answer)), None)
        right = answer is not None
        share = len(group) / len(drawn)
        is_vote = len(group) == max(map(len, groups)) and share >= agreement
        if right if keep == 'right' else is_vote:
            answer = answer if right else group[0].answer
            different = {normalize_space(one.rationale): one for one in reversed(group)}
            chosen += [Kept(index, answer, one.rationale, share, right) for one in reversed(different.values())]
            break  # a tie goes to the answer that came first
    return chosen[:each]


def counts(asked: Sequence[Question], draws: Sequence[Sequence[Draw]], kept: Sequence[Kept]) -> dict[str, Any]:
    """How many questions, draws, draws with an answer, right ones, rationales kept, their questions, the right among them."""
    pairs = [
        (question, one)
        for question, drawn in zip(asked, draws, strict=True)
        for one in drawn
        if one.answer and one.rationale
    ]
    right = sum(any(same_answer(one.answer, answer) for answer in question.answers) for question, one in pairs)
    return {
        'questions': len(asked),
        'draws': sum(map(len, draws)),
        'with_answer': len(pairs),
        'right': right,
        'kept': len(kept),
        'questions_kept': len({one.index for one in kept}),
        'kept_right': sum(one.right for one in kept),
    }


def write(
    path: Path, asked: Sequence[Question], kept: Sequence[Kept], task: str, provenance: Mapping[str, Any]
) -> None:
    """The file and its provenance; both whole or not at all."""
    lines = []
    for one in kept:
        question = asked[one.index].text
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
    r"""A text as a cell of FLAN's TSV: a line break is \n in two characters, a tab a space."""
    return text.strip().replace('\r', '').replace('\n', '\\n').replace('\t', ' ')


def _print(output: str, provenance: Mapping[str, Any]) -> None:
    found = collections.Counter(provenance['counts'])
    print(
        f'{output}: {found["kept"]:,} rationales of {found["questions_kept"]:,} questions kept; {found["questions"]:,} were '
        f'asked, {found["with_answer"]:,} of {found["draws"]:,} draws came to an answer, {found["right"]:,} to the right one'
    )
