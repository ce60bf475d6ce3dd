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
from t5flan.evaluation.inference import WINDOW
from t5flan.evaluation.results import StepResults
from t5flan.evaluation.row_files import Prompt, RowWriter
from t5flan.evaluation.steps import each_step, load_if_there
from t5flan.evaluation.terminal import Progress, print_steps
from t5flan.files import to_path
from t5flan.language_model import LanguageModel
from t5flan.processes.gathering import divide, follow, is_leader, lead, load_together
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
    if not is_leader():
        _follow(checkpoint, benchmarks, asked, decoding, prompt_length)
        return {}
    settings = {name: value for name, value in dataclasses.asdict(decoding).items() if name != 'batch_size'}
    settings |= {'benchmarks': list(asked), 'tasks': list(tasks), 'prompt_length': prompt_length}
    root = os.fspath(checkpoint_root(checkpoint))
    several = steps is not None
    results = StepResults(json_file, {'checkpoint': root, 'limit': limit, 'settings': settings}, several=several)
    chosen = iter([find_step(checkpoint, step)]) if steps is None else steps

    def measured(one: int) -> dict[str, Any] | None:
        saved = saved_at(root, one)
        file = None if predictions is None else to_path(predictions)
        if file is not None and several:
            file = file.with_name(f'{file.stem}-step{one}{file.suffix}')
        if (known := results.known(one, saved)) and (file is None or file.exists()):
            print(f'step {one}: the results are in {json_file} already', file=sys.stderr)
            return known
        lead(one)
        model = load_together(lambda: load_if_there(checkpoint, one))
        if model is None:
            return None
        found = {'step': one, 'saved': saved, **_evaluate(model, benchmarks, asked, decoding, prompt_length, file)}
        results.add(found)
        return found

    header = {'checkpoint': root, 'limit': limit, 'settings': settings}
    every = [header | one for one in each_step(chosen, measured)]
    lead(None)
    if several:
        print_steps(every)
    return every[-1]


def _evaluate(
    model: LanguageModel,
    benchmarks: Sequence[Benchmark],
    asked: Mapping[str, list[Question]],
    decoding: Decoding,
    prompt_length: int | None,
    predictions: Path | None,
) -> dict[str, Any]:
    """Answers and scores the questions with one checkpoint, and prints the tables."""
    started = time.monotonic()
    prompts, dropped = _prompts(model, benchmarks, asked, decoding, prompt_length)
    questions = list(itertools.chain.from_iterable(asked.values()))
    by_name = {benchmark.name: benchmark for benchmark in benchmarks}
    answered = _answer_all(model, by_name, prompts, questions, decoding, predictions)
    found: dict[str, Any] = {'benchmarks': {}}
    for name, benchmark in by_name.items():
        answers = [answer for one, answer in answered if one == name]
        scores = score(benchmark, answers)
        result = summary(benchmark, scores)
        judged = _judged(prompts, answered, name, scores.judged, benchmark.metric)
        found['benchmarks'][name] = result | {'exemplars_dropped': dropped[name], 'samples': judged}
        print_result(benchmark, result, f'{model.folder}, step {model.step}')
        if lost := sum(dropped[name].values()) - dropped[name].get(0, 0):
            print(f'{lost} of {len(answers)} prompts had to lose exemplars')
    found['seconds'] = round(time.monotonic() - started, 1)
    means = {name: result['score'] for name, result in found['benchmarks'].items()}
    if set(BASELINES) <= set(means):
        found['normalized_average'] = normalized_average(means)
        found['mean'] = mean([means[name] for name in BASELINES])
        print(f'normalized average {found["normalized_average"]:.2f}, mean {found["mean"]:.2f}')
    return found


def _follow(
    checkpoint: str,
    benchmarks: Sequence[Benchmark],
    asked: Mapping[str, list[Question]],
    decoding: Decoding,
    prompt_length: int | None,
) -> None:
    """Answers questions with the first process, until it has evaluated all steps."""
    questions = list(itertools.chain.from_iterable(asked.values()))
    by_name = {benchmark.name: benchmark for benchmark in benchmarks}
    while (step := follow()) is not None:
        model = load_together(functools.partial(load_if_there, checkpoint, step))
        if model is None:
            continue
        prompts, _ = _prompts(model, benchmarks, asked, decoding, prompt_length)
        while (numbers := follow()) is not None:
            chunk = [prompts[number] for number in numbers]
            _answer_together(model, by_name[chunk[0].row['benchmark']], chunk, questions, decoding)


def _prompts(
    model: LanguageModel,
    benchmarks: Sequence[Benchmark],
    asked: Mapping[str, list[Question]],
    decoding: Decoding,
    prompt_length: int | None,
) -> tuple[list[Prompt], dict[str, dict[int, int]]]:
    """A prompt for each question, and of each benchmark how many lost 0, 1, 2, ... exemplars to fit."""
    prompts: list[Prompt] = []
    dropped: dict[str, dict[int, int]] = {}
    for benchmark in benchmarks:
        new = decoding.max_new_tokens or benchmark.max_new_tokens
        length = _input_limit(model, new) if prompt_length is None else prompt_length
        rows, dropped[benchmark.name] = _rows(model, asked[benchmark.name], length)
        for row in rows:
            settings = _settings(model, benchmark, decoding)
            prompts.append(Prompt(len(prompts), row['prompt'], {'benchmark': benchmark.name, **row, **settings}))
    return prompts, dropped


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


def _settings(model: LanguageModel, benchmark: Benchmark, decoding: Decoding) -> Row:
    """What decides an answer besides its prompt: a file with other settings is not resumed."""
    settings: Row = {'checkpoint': model.folder, 'step': model.step}
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


def _answer_all(
    model: LanguageModel,
    benchmarks: Mapping[str, Benchmark],
    prompts: Sequence[Prompt],
    questions: Sequence[Question],
    decoding: Decoding,
    predictions: Path | None,
) -> list[tuple[str, Answer]]:
    """The benchmark and the answer of every question, of an earlier run's file or made now."""
    progress, answers = Progress(), []
    size = WINDOW * decoding.batch_size * jax.process_count()

    def answer(chunk: Sequence[Prompt]) -> list[Any]:
        lead([prompt.number for prompt in chunk])
        return _answer_together(model, benchmarks[chunk[0].row['benchmark']], chunk, questions, decoding)

    if predictions is None:
        for chunk in _chunks(prompts, benchmarks, size):
            answers += answer(chunk)
            progress(len(answers), len(prompts))
    else:
        saved = None if model.folder is None or model.step is None else saved_at(model.folder, model.step)
        record = {'checkpoint': model.folder, 'step': model.step, 'saved': saved}
        with RowWriter(predictions, prompts, setting='--predictions', record=record) as writer:
            while writer.remaining:
                chunk = next(_chunks(writer.remaining, benchmarks, size))
                writer.write(answer(chunk))
                progress(len(writer.done), len(prompts))
            answers = [writer.done[prompt.number] for prompt in prompts]
    lead(None)
    found = []
    for prompt, given in zip(prompts, answers, strict=True):
        samples = tuple(given) if isinstance(given, list) else (given,)
        row = prompt.row
        found.append((row['benchmark'], Answer(row['task'], row['index'], samples, row['target'])))
    return found


def _chunks(prompts: Sequence[Prompt], benchmarks: Mapping[str, Benchmark], size: int) -> Any:
    """Parts of at most `size` prompts, each of one benchmark and with the same stop strings."""
    stops = lambda row: (row['benchmark'], benchmarks[row['benchmark']].stop_strings(row['task']))
    for _, group in itertools.groupby(prompts, key=lambda prompt: stops(prompt.row)):
        members = list(group)
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _answer_together(
    model: LanguageModel,
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    questions: Sequence[Question],
    decoding: Decoding,
) -> list[Any]:
    """`_answer`, of which each process of the job does its share."""
    own = lambda places: _answer(model, benchmark, [prompts[i] for i in places], questions, decoding)
    return divide(own, [len(prompt.text) for prompt in prompts])


def _answer(
    model: LanguageModel,
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    questions: Sequence[Question],
    decoding: Decoding,
) -> list[Any]:
    """The completion of each prompt, or a list of samples; for options, the likeliest."""
    texts, numbers = [prompt.text for prompt in prompts], [prompt.number for prompt in prompts]
    asked = [questions[number] for number in numbers]
    if asked[0].options:
        return likeliest(model, texts, [question.options for question in asked], decoding.batch_size)
    limit = prompts[0].row['max_new_tokens']
    decoding = decoding.replace(stop=(*decoding.stop, *benchmark.stop_strings(prompts[0].row['task'])))
    samples = model.samples(texts, decoding.num_samples, limit, decoding=decoding, rows=numbers)
    return samples if decoding.num_samples > 1 else [first for (first,) in samples]


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
