"""The loop of `self_instruct`, `evol_instruct` and `backtranslate`: rounds of candidates until enough are accepted.

    round 0, 1, ...: a method asks the model; its verdict on a candidate is a row, or the filter that rejects it
    until `count` rows are accepted, the method has no more candidates, or the model only repeats itself

The random numbers of a draw come from the seed and its place (stage, round, number); answers are kept in a journal, so
that a killed run resumes to the same file (`journal.py`).
"""

import collections
import dataclasses
import itertools
import json
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from t5flan.decoding.config import CANDIDATES, Decoding
from t5flan.errors import UsageError, UserError
from t5flan.files import to_path, write_json
from t5flan.language_model import LanguageModel, load
from t5flan.synthesis.journal import Journal, Row, fingerprint, finished, open_run
from t5flan.synthesis.seeds import Task
from t5flan.training.checkpoints import saved_at
from t5flan.version import __version__

LEAST_ACCEPTED = 0.01
"""A run stops if a smaller share of the candidates of the last `patience` rounds was accepted."""


class Draw(NamedTuple):
    """A continuation, and whether it ended before the limit of tokens."""

    text: str
    ended: bool


class Verdict(NamedTuple):
    """A candidate: the task it became and its origin, or the name of the filter that rejects it."""

    task: Task | None
    origin: Row = {}
    rejected: str = ''
    text: str = ''


class Method(Protocol):
    """What differs between the commands.

    Attributes:
        name: the command.
        settings: what decides the prompts, for the journal and the provenance.
    """

    name: str
    settings: Mapping[str, Any]

    def round(self, run: 'Run', number: int) -> Iterable[Verdict] | None:
        """The verdicts of a round in order, or None if there are no more candidates."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A model that is asked through a journal.

    Attributes:
        model: the model; converted decoders word requests by their chat template.
        decoding: how candidates are sampled.
        accepted: the tasks accepted in earlier rounds.
    """

    model: LanguageModel
    journal: Journal
    decoding: Decoding
    accepted: list[Task] = dataclasses.field(default_factory=list)

    def continuations(self, stage: str, texts: Sequence[str], **settings: Any) -> list[Draw]:
        """Texts that go on: for a decoder without the marks of a request, whatever its prompt format is.

        Args:
            stage: names the request; with the number of the text it determines the samples.
            **settings: fields of `decoding` to replace.
        """
        encoder = self.model.format == 'encoder_decoder'
        model = self.model if encoder else self.model.in_format('plain')
        return self._ask(model, stage, texts, settings)

    def answers(self, stage: str, requests: Sequence[str], **settings: Any) -> list[Draw]:
        """Answers to requests, worded as the model was trained; greedy unless `settings` set a temperature."""
        return self._ask(self.model, stage, requests, {'temperature': 0.0, **settings})

    def _ask(self, model: LanguageModel, stage: str, texts: Sequence[str], settings: Mapping[str, Any]) -> list[Draw]:
        if not texts:
            return []
        decoding = self.decoding.replace(**settings)

        def ask() -> list[list[Any]]:
            inputs = [model.input_ids(text) for text in texts]
            rows = [zlib.crc32(f'{stage}/{number}'.encode()) & 0x7FFFFFFF for number in range(len(texts))]
            found = model.generate_ids(inputs, decoding=decoding, rows=rows)
            return [[best.text(model.vocabulary), bool(best.ended)] for best, *_ in found]

        key = f'{stage} {fingerprint([list(texts), dataclasses.asdict(decoding)])}'
        return [Draw(*one) for one in self.journal.recall(key, ask)]

    def scores(self, stage: str, requests: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Returns log p(answer | request) by the model, in nats."""
        if not requests:
            return []
        key = f'{stage} {fingerprint([list(requests), list(answers)])}'
        batch_size = self.decoding.batch_size
        found: list[float] = self.journal.recall(
            key, lambda: [float(x) for x in self.model.score(requests, answers, batch_size)]
        )
        return found


def model_fields(model: LanguageModel) -> Row:
    """Which parameters a model has."""
    folder = model.folder or ''
    saved = None if model.step is None else saved_at(folder, model.step)
    return {'checkpoint': model.folder, 'step': model.step, 'saved': saved}


@dataclasses.dataclass(frozen=True)
class Job:
    """Whom a method asks, how long, and where its rows go.

    Attributes:
        checkpoint: the workdir of a run, or one of its steps.
        output: a .jsonl file; its provenance is written beside it.
        count: stop with this number of accepted rows; None is as many as the method has.
        decoding: how candidates are sampled; its batch size is the number of prompts in a round.
        patience: stop if under 1 % of the candidates of as many rounds were accepted.
        step: the checkpoint; None is the latest.
        json_file: also write the provenance to this file.
    """

    checkpoint: str
    output: str
    count: int | None = 200
    decoding: Decoding = CANDIDATES
    patience: int = 5
    step: int | None = None
    json_file: str | None = None


def synthesize(method: Method, job: Job) -> Row:
    """Runs a method, writes `job.output` and its provenance, and prints the acceptance by filter.

    Returns:
        The provenance.

    Raises:
        UsageError: a setting is out of range.
        UserError: the checkpoint cannot be loaded, the output is of another run, or the model only repeats itself.
    """
    _check_settings(job)
    model = load(job.checkpoint, job.step).in_format('auto')
    own = {**model_fields(model), 'method': method.name, **method.settings}
    own |= {name: value for name, value in dataclasses.asdict(job.decoding).items() if name != 'num_samples'}
    own = json.loads(json.dumps(own))
    path = to_path(job.output)
    known = finished(path, {**own, 'count': job.count})
    if known is None:
        with open_run(path, own) as journal:
            run = Run(model, journal, job.decoding)
            known = _rounds(method, run, path, job, own)
    print(f'{job.output}: {_summary(known["counts"])}')
    if job.json_file is not None:
        write_json(job.json_file, known, indent=2)
    return known


def _check_settings(job: Job) -> None:
    if not job.output.endswith('.jsonl'):
        raise UsageError(f'--output={job.output}, expected a file name that ends in .jsonl')
    for name, value in (('count', job.count), ('patience', job.patience)):
        if value is not None and value < 1:
            raise UsageError(f'--{name}={value}, expected an integer of 1 or more')
    if job.decoding.greedy:
        raise UsageError('--temperature=0 makes the same candidates in every round: set it above 0')
    job.decoding.require_one_sample('this command')


def _rounds(method: Method, run: Run, path: Path, job: Job, own: Row) -> Row:
    """Accepts rows until a reason to stop; writes them."""
    count, patience = job.count, job.patience
    rows: list[Row] = []
    rejected: collections.Counter[str] = collections.Counter()
    recent: collections.deque[tuple[int, int]] = collections.deque(maxlen=patience)
    counts = _counts(rows, rejected)
    for number in itertools.count():
        verdicts = method.round(run, number)
        if verdicts is None:
            break
        before, seen = len(rows), 0
        for verdict in verdicts:
            seen += 1
            if count is not None and len(rows) == count:
                break
            if verdict.task is None:
                rejected[verdict.rejected] += 1
            else:
                run.accepted.append(verdict.task)
                rows.append(verdict.task.row({'method': method.name, 'round': number, **verdict.origin}))
        counts = _counts(rows, rejected)
        print(f'round {number}: {_summary(counts)}', file=sys.stderr, flush=True)
        if count is not None and len(rows) >= count:
            break
        recent.append((len(rows) - before, seen))
        if len(recent) == patience and sum(a for a, _ in recent) < LEAST_ACCEPTED * max(1, sum(s for _, s in recent)):
            raise _stopped(path, counts, patience, sum(a for a, _ in recent), sum(s for _, s in recent))
    if not rows:
        run.journal.discard()
        raise UserError(f'{path}: nothing was accepted ({_summary(counts)}). Use a stronger model or another --seed.')
    provenance = {'made_by': f't5flan {__version__}', **own, 'count': count, 'counts': counts}
    run.journal.finish([json.dumps(row, ensure_ascii=False) for row in rows], provenance)
    return json.loads(json.dumps(provenance))


def _counts(rows: Sequence[Row], rejected: collections.Counter[str]) -> Row:
    candidates = len(rows) + rejected.total()
    by_filter = dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0])))
    share = round(len(rows) / max(1, candidates), 4)
    return {'candidates': candidates, 'accepted': len(rows), 'acceptance': share, 'rejected': by_filter}


def _summary(counts: Row) -> str:
    rejected = ', '.join(f'{name} {number:,}' for name, number in counts['rejected'].items()) or 'none'
    return (
        f'{counts["accepted"]:,} of {counts["candidates"]:,} candidates accepted ({counts["acceptance"]:.1%}); '
        f'rejected: {rejected}'
    )


def _stopped(path: Path, counts: Row, patience: int, accepted: int, seen: int) -> UserError:
    """The model writes nothing new."""
    fix = 'Increase --temperature, or use a stronger model or more seeds'
    if counts['accepted']:
        fix = f'Write what is there with --count={counts["accepted"]}, or increase --temperature'
    return UserError(
        f'{path}: stopped, the model repeats itself: {accepted} of the {seen} candidates of the last {patience} rounds '
        f'were accepted; in all {_summary(counts)}. {fix}.'
    )
