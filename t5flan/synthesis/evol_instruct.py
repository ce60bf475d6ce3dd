"""`t5flan evol_instruct`: harder and rarer tasks from given ones (Xu et al. 2023, arXiv:2304.12244, WizardLM).

    t5flan evol_instruct --checkpoint=runs/mine --seeds=tasks.jsonl --count=200 --output=evolved.jsonl

In a round the model rewrites a batch of known tasks, each by one operation: deepening (more constraints, more depth,
more specific, more steps of reasoning) or widening (a new task of the same field). Then it answers. A rewritten task is
eliminated, as in the paper, if it gains nothing (here: ROUGE-L of 0.7 or more with a known task, where the paper asks
ChatGPT), repeats words of the rewriting prompt, or its answer is a refusal, empty, cut off or repeats itself. The
parents of eliminated tasks stay, and are tried again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5flan.decoding.config import Decoding
from t5flan.errors import UsageError
from t5flan.synthesis import loop
from t5flan.synthesis.filters import Pool, instruction_fault, output_fault, without_quotes
from t5flan.synthesis.loop import Job, Run, Verdict
from t5flan.synthesis.seeds import PROMPTS, Instance, Task, generator, read_seeds, request

_WORDING = PROMPTS['evol_instruct']
OPERATIONS = tuple(_WORDING['operations'])
_LEAKED = ('new task', 'rewrite', 'rewritten', 'given task', 'the task', 'constraint or requirement')
_PREFACE = re.compile(r'\A(?:sure|certainly|of course|okay|here)\b.*:\W*\n', re.IGNORECASE)
_ANSWER = re.compile(r'\n\W*(?:answer|solution|output|response)\b', re.IGNORECASE)
"""Where a reply goes on with an answer, which was not asked for."""
_LABEL = re.compile(r'\A(?:(?:new|rewritten)? ?task:\s*)+', re.IGNORECASE)
_TASK_TOKENS = 128
_MOST_WORDS = 120


class EvolInstruct:
    """The rounds of Evol-Instruct; see the module.

    Args:
        seeds: the tasks to begin with.
        decoding: its seed and batch size decide the prompts.
        depth: a task is rewritten at most so many times.
    """

    name = 'evol_instruct'

    def __init__(self, seeds: Sequence[Task], decoding: Decoding, depth: int = 4) -> None:
        self._seed, self._batch, self._depth = decoding.seed, decoding.batch_size, depth
        self._known = [(task, 0) for task in seeds]  # tasks and how often they were rewritten
        self._pool = Pool(task.instruction for task in seeds)
        self.settings: Mapping[str, Any] = {
            'seeds': loop.fingerprint([task.row({}) for task in seeds]),
            'depth': depth,
        }

    def round(self, run: Run, number: int) -> Iterator[Verdict]:
        """The verdicts on the rewritten tasks of a round."""
        place = f'{self.name}/{self._seed}/{number}'
        random = generator(self._seed, self.name, number)
        open_tasks = [(task, depth) for task, depth in self._known if depth < self._depth]
        parents = [random.choice(open_tasks) for _ in range(self._batch)]
        operations = [random.choice(OPERATIONS) for _ in parents]
        prompts = [
            _WORDING['frame'].format(request=_WORDING['operations'][operation], instruction=_whole(parent))
            for operation, (parent, _) in zip(operations, parents, strict=True)
        ]
        decoding = run.decoding
        sampled: dict[str, Any] = dict(temperature=decoding.temperature, max_new_tokens=_TASK_TOKENS)
        drawn = run.answers(f'{place}/tasks', prompts, **sampled)
        new: list[tuple[int, str]] = []
        for i, draw in enumerate(drawn):
            text = _task_of(draw.text)
            fault = self._fault(text) if draw.ended else 'too long'
            if fault:
                yield Verdict(None, rejected=fault, text=text)
            else:
                self._pool.add(text)
                new.append((i, text))
        answers = run.answers(f'{place}/output', [text for _, text in new])
        for (i, text), answer in zip(new, answers, strict=True):
            output, (parent, depth) = answer.text.strip(), parents[i]
            if fault := output_fault(output, text) if answer.ended else 'output too long':
                yield Verdict(None, rejected=fault, text=text)
                continue
            task = Task(f'{self.name}_{number}_{i}', text, (Instance('', output),))
            self._known.append((task, depth + 1))
            origin = {'checkpoint': run.model.folder, 'parent': parent.id, 'operation': operations[i]}
            yield Verdict(task, origin | {'depth': depth + 1})

    def _fault(self, text: str) -> str:
        if fault := instruction_fault(text, most=_MOST_WORDS):
            return fault
        if any(words in text.lower() for words in _LEAKED):
            return 'repeats the prompt'
        return 'gains nothing' if self._pool.has_similar(text) else ''


def _whole(task: Task) -> str:
    """A task as one request: the instruction and its first input."""
    return request(task.instruction, task.instances[0].input)


def _task_of(text: str) -> str:
    r"""The rewritten task in a reply, without a preface, a label or quotes around it, or an answer after it.

    >>> _task_of('Sure, here is the new task:\n\n**Name a red fruit.**\n\nAnswer: a cherry')
    'Name a red fruit.'
    """
    text = _ANSWER.split(_PREFACE.sub('', text.strip()))[0].strip().strip('*#').strip()
    text = _LABEL.sub('', text)
    return without_quotes(text)


def evol_instruct(job: Job, seeds: str | None = None, depth: int = 4) -> dict[str, Any]:
    """Rewrites tasks until enough are accepted; see the module and `loop.synthesize`.

    Args:
        seeds: a file of tasks; None is the packaged ones.
        depth: a task is rewritten at most so many times.
    """
    if depth < 1:
        raise UsageError(f'--depth={depth}, expected an integer of 1 or more')
    return loop.synthesize(EvolInstruct(read_seeds(seeds), job.decoding, depth), job)
