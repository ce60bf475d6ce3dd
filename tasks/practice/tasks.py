"""Practice: small generated instruction tasks, some with rationales, that a tiny model learns within minutes.

The skills (generators) are in arithmetic.py, lists.py, measures.py, logic.py, languages.py and lexicon.py, their
wordings in templates/practice.json. A skill makes the task `practice_NAME` and, if its instances have rationales,
`practice_NAME_cot`, whose target is the rationale and then `So the answer is ANSWER.`

Splits: `train`; `validation`, held-out instances in wordings seen in training; `test_wordings`, held-out instances in
unseen wordings. Example i of a split depends only on (skill, split, i). Mixtures: `practice` (every trained task),
`practice_direct`, `practice_cot`, and `practice_unseen_tasks`: tasks that no training mixture includes, each composed
of trained ones.
"""

import functools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.data.mixtures import definitions
from t5flan.scoring.answers import TRIGGER, extract_answer
from t5flan.scoring.metrics import exact_match
from t5flan.tasks.practice import arithmetic, languages, lexicon, lists, logic, measures
from t5flan.tasks.practice.instance import SPLITS, Instance, Skill, digest, draw_instance

TEMPLATES = Path(__file__).parent.parent / 'templates' / 'practice.json'
SIZES = {'train': 20_000, 'validation': 200, 'test_wordings': 200}
PREFIX, COT = 'practice_', '_cot'

_MODULES = (arithmetic, lists, measures, logic, languages, lexicon)
SKILLS: dict[str, Skill] = {skill.name: skill for module in _MODULES for skill in module.SKILLS}

Wordings = Mapping[str, str | Mapping[str, str]]


@functools.cache
def _templates() -> dict[str, Any]:
    return json.loads(TEMPLATES.read_text(encoding='utf-8'))


def wordings(name: str, held_out: bool = False) -> Wordings:
    """The seen or held-out wordings of a skill: id -> text, or id -> variant -> text."""
    templates = _templates()
    name = templates['same_wordings'].get(name, name)
    return templates['skills'][name]['held_out' if held_out else 'seen']


def triggers(held_out: bool = False) -> Sequence[str]:
    """The sentences that ask for a rationale; they follow the wording."""
    return _templates()['triggers']['held_out' if held_out else 'seen']


def task_names(
    group: str | None = None, *, direct: bool = True, cot: bool = True, trained: bool | None = True
) -> list[str]:
    """Names of practice tasks.

    Args:
        group: a theme (see `groups()`); None selects all.
        direct: include tasks whose target is only the answer.
        trained: True selects tasks of the training mixtures, False the unseen tasks, None both.
    """
    names = []
    for skill in SKILLS.values():
        if (group is None or skill.group == group) and trained in (None, skill.trained):
            names += [PREFIX + skill.name] * direct + [PREFIX + skill.name + COT] * (cot and skill.rationale)
    return names


def groups() -> list[str]:
    """The themes, in order."""
    return list(dict.fromkeys(skill.group for skill in SKILLS.values()))


def skill_of(task: str) -> tuple[Skill, bool]:
    """A task's skill, and whether its target has a rationale.

    Raises:
        KeyError: no practice task has that name.
    """
    name = task.removeprefix(PREFIX)
    if name in SKILLS:
        return SKILLS[name], False
    skill = SKILLS[name.removesuffix(COT)]
    if not skill.rationale or not name.endswith(COT):
        raise KeyError(task)
    return skill, True


def draw(skill: Skill, split: str, index: int) -> tuple[Instance, random.Random]:
    """Instance `index` of a split, and the generator that will choose its wording."""
    rng = random.Random(digest(f'{skill.name}/{split}/{index}'))
    return draw_instance(skill, split, rng), rng


def make_example(task: str, split: str, index: int) -> dict[str, str]:
    """Example `index` of a split: inputs, targets, answer, rationale, wording (its id) and instance (its key).

    The direct task and the one with rationales have the same instance at the same index.
    """
    skill, cot = skill_of(task)
    instance, rng = draw(skill, split, index)
    held_out = split == 'test_wordings'
    choices = wordings(skill.name, held_out)
    number = rng.choice(list(choices))
    text = choices[number]
    if not isinstance(text, str):
        text = text[instance.variant]
    inputs = text.format_map(instance.fields)
    targets = instance.answer
    if cot:
        inputs = f'{inputs} {rng.choice(triggers(held_out))}'
        targets = f'{instance.rationale} {TRIGGER} {instance.answer}.'
    return {
        'inputs': inputs,
        'targets': targets,
        'answer': instance.answer,
        'rationale': instance.rationale if cot else '',
        'wording': f'{skill.name}/{number}',
        'instance': instance.key,
    }


class Examples:
    """The examples of one split of a task, made on demand."""

    def __init__(self, task: str, split: str) -> None:
        skill_of(task)
        self.task, self.split = task, split

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, index: int) -> dict[str, str]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return make_example(self.task, self.split, index)


def texts(split: str = 'train', count: int = 10_000, trained: bool | None = True) -> Iterator[str]:
    """About `count` texts to train a vocabulary on: inputs and targets in turn, from one task after the other."""
    names = task_names(trained=trained)
    for number in range((count + 1) // 2):
        example = make_example(names[number % len(names)], split, number // len(names) % SIZES[split])
        yield example['inputs']
        yield example['targets']


def postprocess(text: str, is_target: bool = False, example: Mapping | None = None, **_: object) -> str:
    """The answer in a target or a model's output: the text after `So the answer is`, or all of it."""
    return extract_answer(text, TRIGGER)


def mixtures() -> dict[str, list[tuple[str, float]]]:
    """Mixture name -> (task, rate)."""
    names = {
        'practice': task_names(),
        'practice_direct': task_names(cot=False),
        'practice_cot': task_names(direct=False),
        'practice_unseen_tasks': task_names(trained=False),
    }
    return {name: [(task, skill_of(task)[0].rate) for task in tasks] for name, tasks in names.items()}


def register() -> None:
    """Registers every practice task and mixture; calling it again changes nothing."""
    from t5flan.data.preprocessing.tokenization import append_eos, tokenize
    from t5flan.data.records.sources import IndexedSource

    for task in task_names(trained=None):
        if task not in definitions.task_names():
            definitions.add_task(
                task,
                source=IndexedSource({split: Examples(task, split) for split in SPLITS}),
                preprocessors=[tokenize, append_eos],
                postprocess_fn=postprocess,
                metric_fns=[exact_match],
            )
    for name, rates in mixtures().items():
        if name not in definitions.mixture_names():
            definitions.add_mixture(name, rates)
