"""`t5flan backtranslate`: instructions for texts that people wrote (Li et al. 2023, arXiv:2308.06259, Humpback).

    t5flan backtranslate --checkpoint=runs/mine --input='articles/*.jsonl' --output=instructions.jsonl

The model reads a text and writes the instruction that it answers; the text becomes the output. In the paper the model
then grades each pair, which small models cannot. Here a pair is kept if the instruction makes its text more likely: if
log p(text | instruction) - log p(text | instruction of another text of the batch) is above 0, nats by the same model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5flan.data.records.fields import require_field
from t5flan.data.records.rows import read_rows
from t5flan.data.records.text_files import match_texts
from t5flan.decoding.config import Decoding
from t5flan.errors import UserError
from t5flan.synthesis import loop
from t5flan.synthesis.filters import Pool, copied, instruction_fault, length_fault, without_quotes
from t5flan.synthesis.loop import Job, Run, Verdict
from t5flan.synthesis.seeds import PROMPTS, Instance, Task, chosen, read_seeds
from t5flan.synthesis.self_instruct import one_line

_WORDING = PROMPTS['backtranslate']
_INSTRUCTION_TOKENS = 64
_SHOWN = 3
_LONGEST_EXAMPLE = 60  # words


class Backtranslate:
    """A round is a batch of texts; see the module.

    Args:
        texts: (place, text) pairs.
        seeds: tasks whose outputs and instructions are examples.
        decoding: its seed and batch size decide the prompts.
        most_words: longer texts are rejected.
    """

    name = 'backtranslate'

    def __init__(
        self, texts: Sequence[tuple[str, str]], seeds: Sequence[Task], decoding: Decoding, most_words: int = 300
    ) -> None:
        self._texts, self._seed, self._batch = list(texts), decoding.seed, decoding.batch_size
        self._most = most_words
        self._examples = [task for task in seeds if not task.instances[0].input] or list(seeds)
        self._pool = Pool()
        self.settings: Mapping[str, Any] = {
            'seeds': loop.fingerprint([task.row({}) for task in seeds]),
            'texts': loop.fingerprint([text for _, text in texts]),
            'most_words': most_words,
        }

    def round(self, run: Run, number: int) -> Iterable[Verdict] | None:
        """The verdicts on the next texts, or None after the last."""
        texts = self._texts[number * self._batch : (number + 1) * self._batch]
        return self._verdicts(run, number, texts) if texts else None

    def _verdicts(self, run: Run, number: int, texts: Sequence[tuple[str, str]]) -> Iterator[Verdict]:
        place = f'{self.name}/{self._seed}/{number}'
        fitting: list[tuple[str, str]] = []
        for where, text in texts:
            if fault := length_fault(text, 3, self._most):
                yield Verdict(None, rejected=f'text {fault}', text=where)
            else:
                fitting.append((where, text))
        prompts = [self._prompt(text, number, i) for i, (_, text) in enumerate(fitting)]
        stop = ('\nText:', '\nInstruction:', '\n\n')
        drawn = run.continuations(f'{place}/tasks', prompts, max_new_tokens=_INSTRUCTION_TOKENS, stop=stop)
        new: list[tuple[str, str, str]] = []
        for (where, text), draw in zip(fitting, drawn, strict=True):
            instruction = without_quotes(one_line(draw.text))
            fault = instruction_fault(instruction) if draw.ended else 'too long'
            fault = fault or ('copies the text' if copied(instruction, text) > 0.5 else '')
            fault = fault or ('similar' if self._pool.has_similar(instruction) else '')
            if fault:
                yield Verdict(None, rejected=fault, text=where)
            else:
                self._pool.add(instruction)
                new.append((where, text, instruction))
        gains = _gains(run, f'{place}/scores', new)
        for i, (where, text, instruction) in enumerate(new):
            if gains[i] <= 0:
                yield Verdict(None, rejected='does not fit the text', text=where)
                continue
            origin = {'checkpoint': run.model.folder, 'text': where, 'gain': round(gains[i], 3)}
            yield Verdict(Task(f'{self.name}_{number}_{i}', instruction, (Instance('', text),)), origin)

    def _prompt(self, text: str, number: int, i: int) -> str:
        shown = chosen(self._examples, _SHOWN, self._seed, self.name, number, i)
        examples = ''.join(
            _WORDING['example'].format(output=one_line(one.instances[0].output), instruction=one_line(one.instruction))
            for one in shown
        )
        return str(_WORDING['instruction'].format(examples=examples, text=one_line(text)))


def _gains(run: Run, stage: str, pairs: Sequence[tuple[str, str, str]]) -> list[float]:
    """How much likelier its own instruction makes each text than that of the next text, nats."""
    texts, own = [text for _, text, _ in pairs], [instruction for *_, instruction in pairs]
    if len(pairs) < 2:
        return [1.0] * len(pairs)  # nothing to compare with
    found = run.scores(stage, [*own, *own[1:], own[0]], [*texts, *texts])
    return [a - b for a, b in zip(found[: len(texts)], found[len(texts) :], strict=True)]


def read_texts(patterns: Sequence[str], field: str) -> list[tuple[str, str]]:
    """(place, text) of `field` of every row of the files, in any format.

    Raises:
        UserError: a file is missing, a row has no such text, or there are none; names file and row.
    """
    found = []
    for path in [path for pattern in patterns for path in match_texts(pattern, '--input')]:
        for row in read_rows(path):
            text = require_field(row.value, field, row.where, '--field')
            if text.strip():
                found.append((row.where, text.strip()))
    if not found:
        raise UserError(f'{", ".join(patterns)} has no text in field {field!r}. Set --input or --field.')
    return found


def backtranslate(
    job: Job, texts: Sequence[str], field: str = 'text', seeds: str | None = None, most_words: int = 300
) -> dict[str, Any]:
    """Writes instructions for texts; see the module and `loop.synthesize`.

    Args:
        texts: files or globs of rows.
        field: the field that holds the text.
        seeds: a file of tasks as examples; None is the packaged ones.
        most_words: longer texts are rejected.
    """
    method = Backtranslate(read_texts(texts, field), read_seeds(seeds), job.decoding, most_words)
    return loop.synthesize(method, job)
