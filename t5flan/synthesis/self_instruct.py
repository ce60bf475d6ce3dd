"""`t5flan self_instruct`: new tasks from a few seed tasks (Wang et al. 2022, arXiv:2212.10560).

    t5flan self_instruct --checkpoint=runs/mine --count=200 --output=new_tasks.jsonl

A round, as in the paper:

1. The model continues a list of 8 tasks, 6 seeds and 2 of its own; each item it writes is a candidate.
2. Candidates are dropped by length, keywords (images, files ...), and ROUGE-L of 0.7 or more with any known task.
3. The model says whether a candidate is a classification task.
4. It writes an instance. Of a classification task first the label and then an input for it, so that not all inputs get
   the same label; of other tasks first the input and then the output. Inputs are continuations of examples; outputs
   are the model's most likely answers to the finished request, worded by its prompt format.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5flan.decoding.config import Decoding
from t5flan.synthesis import loop
from t5flan.synthesis.filters import Pool, instruction_fault, output_fault, without_quotes
from t5flan.synthesis.loop import Draw, Job, Run, Verdict
from t5flan.synthesis.seeds import PROMPTS, Instance, Task, chosen, generator, read_seeds, request

_WORDING = PROMPTS['self_instruct']
SHOWN, OWN = 8, 2
"""Tasks in a prompt, and how many of them the model made."""
_ITEM = re.compile(r'^\s*(\d+)[.)]\s+', re.MULTILINE)
NO_INPUT = ('', 'none', 'n/a', 'no input', 'noinput', 'empty', 'no input needed')
_LIST_TOKENS, _INPUT_TOKENS = 160, 96
_LONGEST_LABEL = 4  # words


class SelfInstruct:
    """The rounds of Self-Instruct; see the module.

    Args:
        seeds: the seed tasks.
        decoding: its seed and batch size decide the prompts.
    """

    name = 'self_instruct'

    def __init__(self, seeds: Sequence[Task], decoding: Decoding) -> None:
        self._seeds, self._seed, self._batch = list(seeds), decoding.seed, decoding.batch_size
        self._pool = Pool(task.instruction for task in seeds)
        self.settings: Mapping[str, Any] = {'seeds': loop.fingerprint([task.row({}) for task in seeds])}

    def round(self, run: Run, number: int) -> Iterator[Verdict]:
        """The verdicts on the candidates of a round."""
        place = functools.partial('/'.join, (self.name, str(self._seed), str(number)))
        drawn = run.continuations(
            f'{place()}/instructions', self._lists(run, number), max_new_tokens=_LIST_TOKENS, stop=(f'\n{SHOWN * 2}.',)
        )
        new: list[str] = []
        for draw in drawn:
            for text in items(draw):
                fault = instruction_fault(text) or ('similar' if self._pool.has_similar(text) else '')
                if fault:
                    yield Verdict(None, rejected=fault, text=text)
                else:
                    self._pool.add(text)
                    new.append(text)
        for i, made in enumerate(self._instances(run, f'{place()}', new, number)):
            if isinstance(made, str):
                yield Verdict(None, rejected=made, text=new[i])
                continue
            instance, is_classification = made
            name = f'{self.name}_{number}_{i}'
            yield Verdict(Task(name, new[i], (instance,), is_classification), {'checkpoint': run.model.folder})

    def _lists(self, run: Run, number: int) -> list[str]:
        """Prompts: numbered tasks and the next number."""
        texts = []
        for i in range(self._batch):
            place = (self._seed, self.name, number, i)
            own = chosen(run.accepted, OWN, *place, 'own')
            tasks = own + chosen(self._seeds, SHOWN - len(own), *place, 'seeds')
            generator(*place, 'order').shuffle(tasks)
            listed = ''.join(f'{n}. {one_line(task.instruction)}\n' for n, task in enumerate(tasks, 1))
            texts.append(_WORDING['instructions'].format(tasks=f'{listed}{len(tasks) + 1}.'))
        return texts

    def _instances(
        self, run: Run, place: str, instructions: Sequence[str], number: int
    ) -> list[tuple[Instance, bool] | str]:
        """An instance for each instruction and whether it is a classification, or the reason why there is none."""
        found: list[tuple[Instance, bool] | str] = ['no instance'] * len(instructions)
        kinds = self._classify(run, place, instructions)
        labels = [i for i, kind in enumerate(kinds) if kind]
        prompts = [self._examples('label', instructions[i], (number, i), labels=True) for i in labels]
        drawn = run.continuations(f'{place}/label', prompts, max_new_tokens=_INPUT_TOKENS, stop=('\nTask:', '\nLabel:'))
        for i, draw in zip(labels, drawn, strict=True):
            found[i] = _labelled(instructions[i], draw)
        others = [i for i, kind in enumerate(kinds) if not kind]
        prompts = [self._examples('input', instructions[i], (number, i), labels=False) for i in others]
        drawn = run.continuations(
            f'{place}/input', prompts, max_new_tokens=_INPUT_TOKENS, stop=('\nTask:', '\nOutput:', '\nInput:')
        )
        inputs: dict[int, str] = {}
        for i, draw in zip(others, drawn, strict=True):
            given = without_quotes(draw.text)
            if not draw.ended:
                found[i] = 'input too long'
            elif one_line(given) == one_line(instructions[i]):
                found[i] = 'input copies'
            else:
                inputs[i] = '' if given.lower().rstrip('.') in NO_INPUT else given
        answers = run.answers(f'{place}/output', [request(instructions[i], given) for i, given in inputs.items()])
        for (i, given), draw in zip(inputs.items(), answers, strict=True):
            output = draw.text.strip()
            fault = output_fault(output, instructions[i], given) if draw.ended else 'output too long'
            found[i] = fault or (Instance(given, output), False)
        return found

    def _classify(self, run: Run, place: str, instructions: Sequence[str]) -> list[bool]:
        """Whether each instruction is a classification task."""
        examples = ''.join(
            _WORDING['classification_example'].format(
                instruction=one_line(task.instruction), answer='Yes' if task.is_classification else 'No'
            )
            for task in self._both_kinds()
        )
        prompts = [
            _WORDING['classification'].format(examples=examples, instruction=one_line(text)) for text in instructions
        ]
        drawn = run.continuations(f'{place}/classification', prompts, temperature=0.0, max_new_tokens=2)
        return [draw.text.strip().lower().startswith('yes') for draw in drawn]

    def _both_kinds(self) -> list[Task]:
        """Up to 2 seeds of each kind, in turns."""
        kinds = [[task for task in self._seeds if task.is_classification is kind][:2] for kind in (True, False)]
        return [task for pair in zip(*kinds) for task in pair] or self._seeds[:4]

    def _examples(self, kind: str, instruction: str, place: tuple[int, int], labels: bool) -> str:
        """The prompt for a label and an input, or for an input: three seeds as examples, then the instruction."""
        fitting = [task for task in self._seeds if task.is_classification is labels] or self._seeds
        shown = chosen(fitting, 3, self._seed, self.name, kind, *place)
        examples = ''.join(
            _WORDING[f'{kind}_example'].format(
                instruction=one_line(task.instruction),
                input=task.instances[0].input or 'none',
                output=task.instances[0].output,
            )
            for task in shown
        )
        return str(_WORDING[kind].format(examples=examples, instruction=one_line(instruction)))


def one_line(text: str) -> str:
    """A text with single spaces, so that it is one item of a list."""
    return ' '.join(text.split())


def items(draw: Draw) -> list[str]:
    r"""The items of a continued list; the last one counts only if the model ended it.

    >>> items(Draw(' Name a fruit.\n10. Name a tree.\n11. Na', False))
    ['Name a fruit.', 'Name a tree.']
    """
    parts = _ITEM.split(draw.text)[::2]
    whole = parts if draw.ended else parts[:-1]
    return [text for part in whole if (text := without_quotes(one_line(part.strip().partition('\n')[0])))]


def _labelled(instruction: str, draw: Draw) -> tuple[Instance, bool] | str:
    """The instance of a classification task, from its label, 'Input:' in a new line, and the input."""
    label, found, given = draw.text.partition('\nInput:')
    label, given = one_line(label), given.strip()
    if not found or not label or not given:
        return 'no instance'
    if not draw.ended:
        return 'input too long'
    if len(label.split()) > _LONGEST_LABEL:
        return 'no label'
    if one_line(given) == one_line(instruction):
        return 'input copies'
    fault = output_fault(label, instruction, given)
    return fault or (Instance(given, label), True)


def self_instruct(job: Job, seeds: str | None = None) -> dict[str, Any]:
    """Makes tasks until enough are accepted; see the module and `loop.synthesize`.

    Args:
        seeds: a file of seed tasks; None is the packaged ones.
    """
    return loop.synthesize(SelfInstruct(read_seeds(seeds), job.decoding), job)
