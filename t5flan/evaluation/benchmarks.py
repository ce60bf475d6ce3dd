"""`t5flan evaluate --benchmark`: a checkpoint's answers to public benchmarks, and their metrics.

    evaluate_benchmarks('runs/mine', [find('bbh_cot')], 'data', predictions='predictions.jsonl')

Every row of the predictions holds the exact prompt, so `t5flan score` and other tools can read it again. A run that was
stopped resumes after its last whole row.
"""

import dataclasses
import functools
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from t5flan.data.vocabulary.prompt_format import answer_ids
from t5flan.decoding.config import GREEDY, Decoding
from t5flan.errors import UserError, did_you_mean
from t5flan.evaluation.benchmark_scores import print_result, summary
from t5flan.evaluation.inference import WINDOW, which_parameters
from t5flan.evaluation.results import StepResults
from t5flan.evaluation.row_files import Prompt, RowWriter
from t5flan.evaluation.steps import each_step, load_on_all
from t5flan.evaluation.terminal import Progress, print_steps
from t5flan.files import to_path
from t5flan.language_model import LanguageModel
from t5flan.processes.gathering import divide, follow, is_leader, lead
from t5flan.scoring.benchmark import Answer, Benchmark, Question, mean, score
from t5flan.scoring.statistics import BASELINES, normalized_average
from t5flan.training.checkpoints import checkpoint_root, find_step, saved_at

SAMPLES = 6
"""Right answers, and wrong answers, that are kept with the scores of a benchmark."""

Row = dict[str, Any]


def evaluate_benchmarks(
    checkpoint: str,
    benchmarks: Sequence[Benchmark],
    folder: str,
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    step: int | None = None,
    steps: Iterator[int] | None = None,
    decoding: Decoding = GREEDY,
    prompt_length: int | None = None,
    predictions: str | None = None,
    json_file: str | None = None,
    adapter: str | None = None,
) -> dict[str, Any]:
    """Asks checkpoints the questions of benchmarks, scores their answers and prints a table for each benchmark.

    Several processes share the questions; the first one scores, prints and writes, and the others return {}.

    Args:
        folder: the files of the benchmarks' public releases, in subfolders or all there.
        tasks: only these tasks of the benchmarks; () is all that the folder has.
        limit: only the first N questions of each task; None is all.
        step: the checkpoint; None is the latest.
        steps: several checkpoints, see `steps.chosen_steps`; those that a run removes meanwhile are skipped.
        decoding: more than one sample a question vote on its answer (arXiv:2203.11171). Its max_new_tokens, if set,
            replaces the benchmark's; its stop strings are added to the benchmark's.
        prompt_length: tokens that a prompt may have; exemplars are left out of longer ones. None is the length of
            training; a checkpoint of unknown length takes every prompt whole.
        predictions: a .jsonl file for the answers. If it exists, the run resumes. Of several steps, each has its own:
            predictions-step100.jsonl.
        json_file: also write the result to this file. Steps that are there with the same settings are not repeated.
        adapter: the folder of an adapter of the checkpoint, which every question then has.

    Returns:
        Of the last step: checkpoint, limit, settings, step, saved, seconds and `benchmarks`: name -> what
        `benchmark_scores.summary` returns, with 'exemplars_dropped' (number of exemplars -> prompts that lost so many)
        and 'samples' (right and wrong answers of some tasks). If the six benchmarks of `normalized_average` are there,
        also 'normalized_average' and 'mean'.

    Raises:
        UserError: the checkpoint or a file of a benchmark is wrong, or a question is too long without exemplars.
    """
    asked = _questions(benchmarks, folder, tasks, limit)
    if decoding.num_samples > 1 and decoding.greedy:
        raise UserError(f'num_samples={decoding.num_samples} with temperature 0 are all alike. Set --temperature=0.7.')
    by_name = {benchmark.name: benchmark for benchmark in benchmarks}
    request = _Request(checkpoint, adapter, by_name, asked, decoding, prompt_length)
    if not is_leader():
        _follow(request)
        return {}
    header: Row = {
        'checkpoint': os.fspath(checkpoint_root(checkpoint)),
        'limit': limit,
        'settings': request.settings() | {'tasks': list(tasks)},
    }
    several = steps is not None
    results = StepResults(json_file, header, several=several)
    chosen = iter([find_step(checkpoint, step)]) if steps is None else steps

    def measured(one: int) -> dict[str, Any] | None:
        saved = saved_at(header['checkpoint'], one)
        file = None if predictions is None else to_path(predictions)
        if file is not None and several:
            file = file.with_name(f'{file.stem}-step{one}{file.suffix}')
        if (known := results.known(one, saved)) and (file is None or file.exists()):
            print(f'step {one}: the results are in {json_file} already', file=sys.stderr)
            return known
        lead(one)
        asker = request.asker(one)
        if asker is None:
            return None
        found = {'step': one, 'saved': saved, **asker.evaluate(file)}
        results.add(found)
        return found

    every = [header | one for one in each_step(chosen, measured)]
    lead(None)
    if several:
        print_steps(every)
    return every[-1]


def _follow(request: '_Request') -> None:
    """Answers questions with the first process, until it has evaluated all steps."""
    while (step := follow()) is not None:
        asker = request.asker(step)
        if asker is None:
            continue
        while (numbers := follow()) is not None:
            asker.answer_together([asker.prompts[number] for number in numbers])


@dataclasses.dataclass(frozen=True)
class _Request:
    """What every checkpoint is asked; benchmarks and their questions by name."""

    checkpoint: str
    adapter: str | None
    benchmarks: Mapping[str, Benchmark]
    asked: Mapping[str, list[Question]]
    decoding: Decoding
    prompt_length: int | None

    def settings(self) -> Row:
        """What decides the results besides the step, the tasks and their limit."""
        found = {name: value for name, value in dataclasses.asdict(self.decoding).items() if name != 'batch_size'}
        found |= {'benchmarks': list(self.asked), 'prompt_length': self.prompt_length}
        return found | self.adapter_fields()

    def adapter_fields(self) -> Row:
        """{'adapter': which it is}; {} without one."""
        return {} if self.adapter is None else {'adapter': which_parameters(self.adapter)}

    def asker(self, step: int) -> '_Asker | None':
        """Loads a checkpoint on all processes; None if a run has removed it."""
        model = load_on_all(self.checkpoint, step, self.adapter)
        return None if model is None else _Asker(self, model)


class _Asker:
    """Asks one checkpoint the questions of a request.

    Attributes:
        prompts: one for each question.
        dropped: of each benchmark, how many prompts lost 0, 1, 2, ... exemplars to fit.

    Raises:
        UserError: a question is too long without exemplars.
    """

    def __init__(self, request: _Request, model: LanguageModel) -> None:
        self._request, self._model = request, model
        self._started = time.monotonic()
        self._questions = list(itertools.chain.from_iterable(request.asked.values()))
        self.prompts: list[Prompt] = []
        self.dropped: dict[str, dict[int, int]] = {}
        for name, benchmark in request.benchmarks.items():
            new = request.decoding.max_new_tokens or benchmark.max_new_tokens
            length = _input_limit(model, new) if request.prompt_length is None else request.prompt_length
            rows, self.dropped[name] = _rows(model, request.asked[name], length)
            settings = self._settings(benchmark)
            for row in rows:
                self.prompts.append(Prompt(len(self.prompts), row['prompt'], {'benchmark': name, **row, **settings}))

    def _settings(self, benchmark: Benchmark) -> Row:
        """What decides an answer besides its prompt: a file with other settings is not resumed."""
        decoding = self._request.decoding
        settings: Row = {'checkpoint': self._model.folder, 'step': self._model.step}
        settings |= {name: one['checkpoint'] for name, one in self._request.adapter_fields().items()}
        settings['max_new_tokens'] = decoding.max_new_tokens or benchmark.max_new_tokens
        if not decoding.greedy:
            names = ('temperature', 'top_k', 'top_p', 'num_samples', 'seed')
            settings |= {name: getattr(decoding, name) for name in names}
        if decoding.num_beams > 1:
            search = ('num_beams', 'length_penalty', 'early_stopping', 'beam_scoring')
            settings |= {name: getattr(decoding, name) for name in search}
        if decoding.stop:  # the benchmark's own stop strings do not change what an answer scores
            settings['stop'] = list(decoding.stop)
        return settings

    def evaluate(self, predictions: Path | None) -> Row:
        """Answers and scores the questions, and prints the tables."""
        answered = self._answer_all(predictions)
        found: Row = {'benchmarks': {}}
        adapter = '' if self._request.adapter is None else f' with {self._request.adapter}'
        for name, benchmark in self._request.benchmarks.items():
            answers = [answer for one, answer in answered if one == name]
            scores = score(benchmark, answers)
            result = summary(benchmark, scores)
            judged = _judged(self.prompts, answered, name, scores.judged, benchmark.metric)
            dropped = self.dropped[name]
            found['benchmarks'][name] = result | {'exemplars_dropped': dropped, 'samples': judged}
            print_result(benchmark, result, f'{self._model.folder}{adapter}, step {self._model.step}')
            if lost := sum(dropped.values()) - dropped.get(0, 0):
                print(f'{lost} of {len(answers)} prompts had to lose exemplars')
        found['seconds'] = round(time.monotonic() - self._started, 1)
        means = {name: result['score'] for name, result in found['benchmarks'].items()}
        if set(BASELINES) <= set(means):
            found['normalized_average'] = normalized_average(means)
            found['mean'] = mean([means[name] for name in BASELINES])
            print(f'normalized average {found["normalized_average"]:.2f}, mean {found["mean"]:.2f}')
        return found

    def _answer_all(self, predictions: Path | None) -> list[tuple[str, Answer]]:
        """The benchmark and the answer of every question, of an earlier run's file or made now."""
        progress, answers, model = Progress(), [], self._model

        def answer(chunk: Sequence[Prompt]) -> list[Any]:
            lead([prompt.number for prompt in chunk])
            return self.answer_together(chunk)

        if predictions is None:
            for chunk in self._chunks(self.prompts):
                answers += answer(chunk)
                progress(len(answers), len(self.prompts))
        else:
            saved = None if model.folder is None or model.step is None else saved_at(model.folder, model.step)
            record: Row = {'checkpoint': model.folder, 'step': model.step, 'saved': saved}
            record |= self._request.adapter_fields()
            with RowWriter(predictions, self.prompts, setting='--predictions', record=record) as writer:
                while writer.remaining:
                    chunk = next(self._chunks(writer.remaining))
                    writer.write(answer(chunk))
                    progress(len(writer.done), len(self.prompts))
                answers = [writer.done[prompt.number] for prompt in self.prompts]
        lead(None)
        found = []
        for prompt, given in zip(self.prompts, answers, strict=True):
            samples = tuple(given) if isinstance(given, list) else (given,)
            row = prompt.row
            found.append((row['benchmark'], Answer(row['task'], row['index'], samples, row['target'])))
        return found

    def _chunks(self, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
        """Parts of a few batches, each of one benchmark and with the same stop strings."""
        size = WINDOW * self._request.decoding.batch_size * jax.process_count()
        for _, group in itertools.groupby(prompts, key=lambda prompt: (prompt.row['benchmark'], self._stops(prompt))):
            members = list(group)
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def _stops(self, prompt: Prompt) -> tuple[str, ...]:
        return self._request.benchmarks[prompt.row['benchmark']].stop_strings(prompt.row['task'])

    def answer_together(self, prompts: Sequence[Prompt]) -> list[Any]:
        """The answers to a chunk, of which each process of the job gives its share."""
        own = lambda places: self._answer([prompts[i] for i in places])
        return divide(own, [len(prompt.text) for prompt in prompts])

    def _answer(self, prompts: Sequence[Prompt]) -> list[Any]:
        """The completion of each prompt, or a list of samples; for options, the likeliest."""
        texts, numbers = [prompt.text for prompt in prompts], [prompt.number for prompt in prompts]
        asked = [self._questions[number] for number in numbers]
        decoding, model = self._request.decoding, self._model
        if asked[0].options:
            return likeliest(model, texts, [question.options for question in asked], decoding.batch_size)
        limit = prompts[0].row['max_new_tokens']
        decoding = decoding.replace(stop=(*decoding.stop, *self._stops(prompts[0])))
        samples = model.samples(texts, decoding.num_samples, limit, decoding=decoding, rows=numbers)
        return samples if decoding.num_samples > 1 else [first for (first,) in samples]


def _judged(
    prompts: Sequence[Prompt],
    answered: Sequence[tuple[str, Answer]],
    name: str,
    judged: Mapping[tuple[str, int], Mapping[str, float]],
    metric: str,
) -> list[Row]:
    """Right and wrong answers of a benchmark with their prompts, one of each task, if its questions have scores."""
    chosen: dict[tuple[bool, str], Row] = {}
    for prompt, (benchmark, answer) in zip(prompts, answered, strict=True):
        value = judged.get((answer.task, answer.index), {}).get(metric) if benchmark == name else None
        if value is not None:
            row = {field: prompt.row[field] for field in ('task', 'index', 'prompt', 'target')}
            row |= {'prediction': answer.samples[0], 'correct': value >= 1}
            chosen.setdefault((value >= 1, answer.task), row)
    by_verdict = ([row for (given, _), row in chosen.items() if given is verdict] for verdict in (True, False))
    return [row for rows in by_verdict for row in rows[:SAMPLES]]


def _questions(
    benchmarks: Sequence[Benchmark], folder: str, tasks: Sequence[str], limit: int | None
) -> dict[str, list[Question]]:
    """The questions of each benchmark: of all its tasks in the folder, or of the named ones."""
    known = {benchmark.name: benchmark.tasks(folder) for benchmark in benchmarks}
    every = sorted({task for names in known.values() for task in names})
    for task in tasks:
        if task not in every:
            near = did_you_mean(task, every) or f'; there are {", ".join(every[:5])}'
            raise UserError(f'{folder} has no task {task!r} of {", ".join(known)}{near}. Set --tasks.')
    asked = {}
    for benchmark in benchmarks:
        chosen = [task for task in known[benchmark.name] if not tasks or task in tasks]
        asked[benchmark.name] = [one for task in chosen for one in benchmark.questions(folder, task, limit)]
        if not asked[benchmark.name]:
            raise UserError(f'no questions of {benchmark.name} are selected in {folder}. Set --tasks or --benchmark.')
    return asked


def _input_limit(model: LanguageModel, max_new_tokens: int) -> int | None:
    """Tokens of the longest prompt the model was trained for, with room for the answer; None if that is unknown."""
    lengths = model.feature_lengths
    if not lengths:
        return None
    if model.format == 'encoder_decoder':
        return lengths.get('inputs')
    whole = sum(lengths.values())  # a row of a decoder-only model holds the prompt and the answer
    return max(whole - max_new_tokens, whole // 2)


def _rows(model: LanguageModel, questions: Sequence[Question], length: int | None) -> tuple[list[Row], dict[int, int]]:
    """A row for each question with its prompt, and how many prompts lost 0, 1, 2, ... exemplars to fit.

    Raises:
        UserError: a question is too long without any exemplar.
    """
    rows, counts = [], {0: 0}
    too_long: list[tuple[int, Question]] = []
    for question in questions:
        dropped, size = fitting(model, question, length)
        if length is not None and size > length:
            too_long.append((size, question))
        counts[dropped] = counts.get(dropped, 0) + 1
        row = {'task': question.task, 'index': question.index, 'prompt': question.prompt(dropped)}
        rows.append(row | {'target': question.target})
    if too_long:
        size, longest = max(too_long, key=lambda item: item[0])
        raise UserError(
            f'{len(too_long)} of {len(questions)} questions have more than {length} tokens without exemplars; '
            f'number {longest.index} of {longest.task} has {size}. Set --prompt_length={size} or --tasks.'
        )
    return rows, dict(sorted(counts.items()))


def fitting(model: LanguageModel, question: Question, length: int | None) -> tuple[int, int]:
    """How many exemplars a prompt loses to have at most `length` tokens, and how many it has then (0 without a limit).

    A question that is longer without any exemplar loses all of them.
    """
    if length is None:
        return 0, 0
    size = 0
    for dropped in range(len(question.exemplars) + 1):
        size = len(model.input_ids(question.prompt(dropped)))
        if size <= length:
            return dropped, size
    return len(question.exemplars), size


def likeliest(
    model: LanguageModel, prompts: Sequence[str], options: Sequence[Sequence[str]], batch_size: int
) -> list[str]:
    """The likeliest option of each prompt, its end of sequence not counted; the first of equal ones."""
    pairs = [(prompt, option) for prompt, choices in zip(prompts, options, strict=True) for option in choices]
    inputs = {prompt: model.input_ids(prompt) for prompt in prompts}
    answer = functools.partial(answer_ids, model.vocabulary, prompt_format=model.prompt_format or 'plain')
    targets = [answer(prompt, option)[:-1] for prompt, option in pairs]
    found = model.likelihoods([inputs[prompt] for prompt, _ in pairs], targets, batch_size=batch_size)
    scores = iter([one.log_prob for one in found])
    best = []
    for choices in options:
        own = [next(scores) for _ in choices]
        best.append(choices[own.index(max(own))].strip())
    return best
