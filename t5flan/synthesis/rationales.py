"""`t5flan rationales`: a model's own rationales for a task, filtered by their answers, as a new chain-of-thought file.

    t5flan rationales --checkpoint=runs/mine --task=cot_gsm8k --samples=8 --keep=right --output=gsm8k_sampled.tsv

Several rationales are sampled for every question of a split. Those are kept whose answer is right (`right`: STaR,
arXiv:2203.14465), or is the answer of most samples, whatever the file says (`vote`: self-consistency, arXiv:2203.11171,
as labels in arXiv:2210.11610). A sample counts if it ended, gives an answer and has text before it; answers are read as
in the benchmarks (`scoring.answers.split_answer`). Filters reject rationales by length, repetition and copying.

Samples are written as they are drawn, and a killed run resumes (`journal.py`). DataConfig.cot reads the file like any
other: a .tsv of question, answer and rationale, or a .jsonl with the CoT Collection's fields and the origin of each
row. OUTPUT.provenance.json beside it has checkpoint, step, settings, counts.
"""

import dataclasses
import itertools
import json
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
from t5flan.files import to_path, write_json, write_whole
from t5flan.language_model import LanguageModel, load
from t5flan.scoring.answers import TRIGGER, extract_answer
from t5flan.synthesis.journal import Journal, fingerprint, finished, open_run
from t5flan.synthesis.loop import model_fields
from t5flan.synthesis.rationale_choice import (
    Filters,
    Kept,
    Question,
    Sample,
    choose,
    count,
    has_number,
    parse,
    same_answer,
    why_none,
)
from t5flan.version import __version__

KEEP = ('right', 'vote')
SUFFIXES = ('.tsv', '.jsonl')
WINDOW = 2
"""Batches of questions between two lines of the journal."""

Exemplar = Mapping[str, str]
"""A question, a rationale and an answer."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which rationales are kept.

    Attributes:
        keep: 'right' or 'vote'.
        each: at most so many different rationales of a question.
        agreement: for 'vote', the smallest share of the samples that must have the answer.
        filters: which rationales are rejected.
        score: whether the log-likelihood of each kept rationale by the model itself is written, too.
    """

    keep: str = 'right'
    each: int = 1
    agreement: float = 0.5
    filters: Filters = Filters()
    score: bool = False

    def settings(self) -> dict[str, Any]:
        """The fields of the provenance."""
        fields = dataclasses.asdict(self)
        return fields if self.keep == 'vote' else {name: x for name, x in fields.items() if name != 'agreement'}


CHOICE = Choice()


def rationales(
    checkpoint: str,
    task: str,
    output: str,
    *,
    choice: Choice = CHOICE,
    split: str = 'train',
    limit: int | None = None,
    trigger: str | None = None,
    answer_words: Sequence[str] = (TRIGGER,),
    exemplars: Sequence[Exemplar] = (),
    draws: str | None = None,
    step: int | None = None,
    decoding: Decoding = SAMPLING,
    json_file: str | None = None,
) -> dict[str, Any]:
    """Samples and filters rationales, writes `output` and its provenance, and prints the counts.

    Args:
        task: a SeqIO task. Its questions are used as they are, or its zero-shot prompts if it has no questions.
        choice: which rationales are kept.
        limit: only the first N questions; None is all.
        trigger: the sentence that asks for a rationale; '' adds none. None is the first of InstructionConfig.triggers,
            for prompts that do not ask for one.
        answer_words: the phrases that announce an answer, one for each language, beside the usual ones.
        exemplars: solved questions that come before each prompt.
        draws: also write every draw and what became of it to this .jsonl file.
        decoding: its num_samples is the number of rationales sampled for each question.

    Returns:
        The provenance.

    Raises:
        UsageError: a setting is out of range.
        UserError: no such checkpoint, task or split, the output is of another run, or no rationale was kept.
    """
    _check_settings(output, choice, draws, decoding)
    questions, whole = read_questions(task, split, limit, answer_words)
    model = load(checkpoint, step).in_format('auto')
    prompts = [with_exemplars(prompt_of(question, trigger), exemplars) for question in questions]
    drawing = {
        **model_fields(model),
        'task': task,
        'split': split,
        'prompts': fingerprint(prompts),
        'samples': decoding.num_samples,
        'trigger': trigger,
        **{name: getattr(decoding, name) for name in ('temperature', 'top_k', 'top_p', 'stop', 'seed')},
        'max_new_tokens': decoding.max_new_tokens or model.max_new_tokens,
        'exemplars': len(exemplars),
    }
    path, settings = to_path(output), {**drawing, **choice.settings()}
    found = finished(path, settings)
    if found is None:
        asks = {'whole_prompts': whole, 'prompts_ask': whole and all(question.asks for question in questions)}
        made = {'made_by': f't5flan {__version__}', **settings, **asks}
        with open_run(path, {**drawing, 'batch_size': decoding.batch_size}) as journal:
            samples = sample(model, questions, prompts, decoding, answer_words, journal)
            found, kept = _choose_all(questions, samples, choice, made, draws)
            kept = _scored(model, prompts, kept, journal) if choice.score else kept
            journal.finish(lines_of(path, questions, kept, task), found)
    counts = found['counts']
    print(
        f'{output}: {counts["kept"]:,} rationales of {counts["questions_kept"]:,} questions kept; '
        f'{counts["questions"]:,} questions, {counts["with_answer"]:,} of {counts["draws"]:,} samples with an answer, '
        f'{counts["right"]:,} right'
    )
    if json_file is not None:
        write_json(json_file, found, indent=2)
    return found


def _choose_all(
    questions: Sequence[Question],
    samples: Sequence[Sequence[Sample]],
    choice: Choice,
    made: Mapping[str, Any],
    draws: str | None,
) -> tuple[dict[str, Any], list[Kept]]:
    """The provenance and the kept rationales; raises a UserError if there are none."""
    filtered = [
        [_filtered(one, question, choice.filters) for one in group]
        for question, group in zip(questions, samples, strict=True)
    ]
    kept = [
        one
        for index, (question, group) in enumerate(zip(questions, filtered, strict=True))
        for one in choose(index, question, group, choice.keep, choice.each, choice.agreement)
    ]
    if draws is not None:
        write_draws(to_path(draws), questions, filtered, kept)
    counts = count(questions, filtered, kept)
    if not kept:
        raise UserError(
            f'{made["task"]}: none of {made["samples"]} rationales for each of {len(questions)} questions was kept '
            f'({counts}). Most likely {why_none(filtered, counts)}.'
        )
    return json.loads(json.dumps({**made, 'counts': counts})), kept


def _check_settings(output: str, choice: Choice, draws: str | None, decoding: Decoding) -> None:
    if choice.keep not in KEEP:
        raise UsageError(f'--keep={choice.keep}, expected {" or ".join(KEEP)}')
    if not output.endswith(SUFFIXES):
        raise UsageError(f'--output={output}, expected a file name that ends in {" or ".join(SUFFIXES)}')
    if choice.score and not output.endswith('.jsonl'):
        raise UsageError(f'--score with --output={output}: a .tsv has no column for it. Set --output=....jsonl')
    if draws is not None and (not draws.endswith('.jsonl') or Path(draws) == Path(output)):
        raise UsageError(f'--draws={draws}, expected another file name than --output that ends in .jsonl')
    if choice.each < 1:
        raise UsageError(f'--each={choice.each}, expected an integer of 1 or more')
    if not 0 < choice.agreement <= 1:
        raise UsageError(f'--agreement={choice.agreement}, expected a number above 0 and at most 1')
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


def with_exemplars(prompt: str, exemplars: Sequence[Exemplar]) -> str:
    """A prompt after solved questions, or alone if there are none."""
    if not exemplars:
        return prompt
    solved = ''.join(f'Q: {one["question"]}\nA: {one["rationale"]} {TRIGGER} {one["answer"]}.\n\n' for one in exemplars)
    return f'{solved}Q: {prompt}\nA:'


def sample(
    model: LanguageModel,
    questions: Sequence[Question],
    prompts: Sequence[str],
    decoding: Decoding,
    answer_words: Sequence[str],
    journal: Journal,
) -> list[list[Sample]]:
    """`decoding.num_samples` samples for each prompt; those of one depend on its index and the seed only."""
    sampled: list[list[Sample]] = []
    window = WINDOW * decoding.batch_size
    for start in range(0, len(prompts), window):

        def ask(start: int = start) -> list[list[list[Any]]]:
            inputs = [model.input_ids(text) for text in prompts[start : start + window]]
            found = model.generate_ids(inputs, decoding=decoding, rows=range(start, start + len(inputs)))
            return [[[one.text(model.vocabulary), bool(one.ended)] for one in group] for group in found]

        for group in journal.recall(f'questions from {start}', ask):
            is_number = has_number(questions[len(sampled)])
            sampled.append([_read(text, ended, answer_words, is_number) for text, ended in group])
        print(f'{len(sampled)} of {len(prompts)} questions', file=sys.stderr, flush=True)
    return sampled


def _read(text: str, ended: bool, answer_words: Sequence[str], is_number: bool) -> Sample:
    text = text.partition('\nQ:')[0]  # the model may go on with a question of its own
    return parse(text, answer_words, is_number) if ended else Sample('', '', text, False)


def _filtered(one: Sample, question: Question, filters: Filters) -> Sample:
    fault = filters.fault(one.rationale, question.text) if one.rationale and one.answer else ''
    return dataclasses.replace(one, fault=fault)


def _scored(model: LanguageModel, prompts: Sequence[str], kept: Sequence[Kept], journal: Journal) -> list[Kept]:
    """With the log-likelihood of each rationale after its prompt, nats for each token."""
    scored: list[Kept] = []
    groups = iter(kept)
    while group := list(itertools.islice(groups, 64)):

        def ask(group: Sequence[Kept] = group) -> list[float]:
            inputs = [model.input_ids(prompts[one.index]) for one in group]
            targets = [model.vocabulary.encode(one.rationale) for one in group]
            found = model.score_ids(inputs, targets)
            return [float(total) / max(1, len(target)) for total, target in zip(found, targets, strict=True)]

        key = f'scores {fingerprint([[one.index, one.rationale] for one in group])}'
        means = journal.recall(key, ask)
        scored += [dataclasses.replace(one, log_likelihood=mean) for one, mean in zip(group, means, strict=True)]
    return scored


def write_draws(
    path: Path, questions: Sequence[Question], samples: Sequence[Sequence[Sample]], kept: Sequence[Kept]
) -> None:
    """Writes a row for each draw: its text, rationale and answer, whether that is right, and what became of it."""
    chosen = {(one.index, one.rationale) for one in kept}
    lines = []
    for index, (question, group) in enumerate(zip(questions, samples, strict=True)):
        for number, one in enumerate(group):
            right = bool(one.answer) and any(same_answer(one.answer, answer) for answer in question.answers)
            verdict = 'kept' if (index, one.rationale) in chosen else one.fault or 'not kept'
            if not (one.rationale and one.answer):
                verdict = 'no rationale' if one.answer else 'no answer' if one.ended else 'did not end'
            row = {'index': index, 'draw': number, 'source': question.text, 'text': one.text, 'answer': one.answer}
            row |= {'rationale': one.rationale, 'right': right, 'verdict': verdict}
            lines.append(json.dumps(row, ensure_ascii=False) + '\n')
    write_whole(path, ''.join(lines).encode('utf-8', 'replace'))


def lines_of(path: Path, questions: Sequence[Question], kept: Sequence[Kept], task: str) -> list[str]:
    """The lines of the file: cells of a .tsv, or objects of a .jsonl."""
    lines = []
    for one in kept:
        question = questions[one.index].text
        if path.suffix == '.tsv':
            lines.append('\t'.join(_cell(text) for text in (question, one.answer, one.rationale)))
            continue
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
        if one.log_likelihood is not None:
            row['log_likelihood'] = round(one.log_likelihood, 4)
        lines.append(json.dumps(row, ensure_ascii=False))
    return lines


def _cell(text: str) -> str:
    r"""A text as a cell of FLAN's TSV: a line break becomes \n (two characters), a tab a space."""
    return text.strip().replace('\r', '').replace('\n', '\\n').replace('\t', ' ')
