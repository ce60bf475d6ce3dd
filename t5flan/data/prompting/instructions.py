r"""Words a task's records in its family's templates (templates.py), in a random variant each time.

A record becomes an item: its fields as texts, 'answer', and optionally 'options' (a list that holds the answer) and a
'rationale'. The example's random numbers choose the wording and the variant; InstructionConfig sets the shares:

    zero-shot or few-shot   exemplars of the task's training split, in the same wording, come before the question
    options                 the prompt lists them, in one of several layouts
    rationale               a trigger asks for it; the target is the rationale, then 'So the answer is ANSWER.'
    inverted                the prompt asks for the question to an answer (in training only: metrics expect answers)

Worked example, few-shot with options (the layouts 'Options:\n(A) …' and 'Q: …\nA:'):

    {'premise': 'It rains.', 'hypothesis': 'It is wet.', 'answer': 'yes', 'options': ['yes', 'no']}

    inputs   Q: He ran. Does it follow that he sat?      targets  (A)
             Options:                                    variant  few-shot, options
             (A) yes
             (B) no
             A: (B)

             Q: It rains. Does it follow that it is wet?
             Options:
             (A) yes
             (B) no
             A:

An exemplar never has the same fields as the question, so that a question that appears twice in the training split does
not give away its answer. A prompt longer than feature_lengths['inputs'] loses whole exemplars. If the question alone is
too long, its longest field (a passage, a document) loses its middle, so that the question itself stays whole; such an
example counts as cut.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, Result
from t5flan.data.prompting.templates import ExemplarLayout, Family, OptionLayout, Template
from t5flan.data.records.file_rows import Records
from t5flan.data.vocabulary.prompt_format import tokens_around
from t5flan.errors import UserError

Item = dict[str, Any]
"""Field -> text; 'answer' -> text; optionally 'options' -> texts (the answer among them) and 'rationale' -> text."""
RATIONALE = '{rationale} So the answer is {answer}.'
"""A target with a rationale; scoring/answers.py finds the answer by these words."""
INVERTED = ['inverted']
GAP = ' ... '
"""Replaces the middle of a field that is too long."""
SHORTEST = 80
"""The fewest characters that a field keeps; if the prompt is still too long, the pipeline trims its end."""
POOL = 256
"""Training records that a task's exemplars are drawn from; their lengths in tokens are counted once."""
KEPT = 100_000
"""Characters of these records that stay in memory per task: 100 MB for a thousand tasks."""


def item_of(record: Example) -> Item:
    """The `to_item` of records that are items already."""
    return record


class Exemplars:
    """Items of a training split that prompts draw from: up to POOL of them, evenly spread, read on demand."""

    def __init__(self, records: Callable[[], Records], to_item: Callable[[Example], Item | None]) -> None:
        self._open, self._to_item = records, to_item
        self._densities: dict[int, float] = {}
        self._vocabulary: Any = None
        self._items: dict[int, Item | None] = {}
        self._room = KEPT

    @functools.cached_property
    def _records(self) -> Records:
        return self._open()

    def __len__(self) -> int:
        return min(len(self._records), POOL)

    def item(self, number: int) -> Item | None:
        """Item `number` of the pool; None if its record makes none. The first items, up to KEPT, stay in memory."""
        if number in self._items:
            return self._items[number]
        item = self._to_item(self._records[number * len(self._records) // len(self)])
        length = sum(len(value) for value in item.values()) if item else 0
        if length <= self._room:
            self._room -= length
            self._items[number] = item
        return item

    def density(self, number: int, item: Item, vocabulary: Any) -> float:
        """Tokens per character of an item's text; it is tokenized once per vocabulary."""
        if vocabulary is not self._vocabulary:
            self._vocabulary, self._densities = vocabulary, {}
        if number not in self._densities:
            text = ' '.join(value for value in item.values() if isinstance(value, str))
            self._densities[number] = len(vocabulary.encode(text)) / max(1, len(text))
        return self._densities[number]

    def draw(self, count: int, rng: np.random.Generator, fits: Callable[[Item], bool]) -> list[tuple[int, Item]]:
        """`count` different items that `fits` accepts, with their numbers; fewer if the pool has fewer."""
        size = len(self)
        if size <= 64:
            order = rng.permutation(size).tolist()
        else:
            order = list(dict.fromkeys((rng.random(3 * count + 6) * size).astype(int).tolist()))
        drawn: list[tuple[int, Item]] = []
        for number in order:
            item = self.item(number)
            if item is not None and fits(item):
                drawn.append((number, item))
                if len(drawn) == count:
                    break
        return drawn


@dataclasses.dataclass(slots=True)
class Plan:
    """How one prompt is worded, the question and every exemplar alike."""

    template: Template
    options: OptionLayout | None
    order: list[int] | None
    """The order in which options are listed; None keeps theirs."""
    trigger: str
    """The sentence that asks for the rationale; '' for none."""
    variant: list[str]


@dataclasses.dataclass(slots=True)
class Prompt:
    """A question with its exemplars."""

    question: str
    targets: str
    answer: str
    variant: list[str]
    head: str = ''
    layout: ExemplarLayout | None = None
    exemplars: list[str] = dataclasses.field(default_factory=list)
    """Their texts in the prompt, in order."""
    tokens: list[float] = dataclasses.field(default_factory=list)
    """Estimated tokens of each."""
    fields: list[str] = dataclasses.field(default_factory=list)
    """The texts of the question that may be shortened."""
    shortened: bool = False

    def text(self) -> str:
        """The whole prompt."""
        if self.layout is None or not self.exemplars:
            return (self.head + self.question).strip()
        question = self.layout.inputs.format_map({'inputs': self.question})
        return (self.head + self.layout.before + self.layout.between.join([*self.exemplars, question])).strip()

    def keep(self, limit: float) -> None:
        """Drops each exemplar with which the prompt would exceed `limit` tokens, by their estimates."""
        characters = sum(map(len, self.exemplars))
        density = sum(self.tokens) / max(1, characters)
        used = density * (len(self.head) + len(self.question))
        kept = []
        for number, tokens in enumerate(self.tokens):
            if used + tokens <= limit:
                used += tokens
                kept.append(number)
        self.exemplars = [self.exemplars[number] for number in kept]
        self.tokens = [self.tokens[number] for number in kept]

    def drop(self, tokens: float) -> bool:
        """Drops the last exemplars: about `tokens` tokens, at least one exemplar; False if there is none."""
        before = len(self.exemplars)
        while self.exemplars and tokens > 0:
            self.exemplars.pop()
            tokens -= max(1, math.floor(self.tokens.pop()))
        return len(self.exemplars) < before

    def shorten(self, tokens: float, of: int) -> bool:
        """Removes about `tokens` of the prompt's `of` tokens from the middle of its longest field; False if it cannot.

        Two thirds of the remaining text are the beginning of the field.
        """
        longest = max((text for text in self.fields if text in self.question), key=len, default='')
        excess = math.ceil((tokens + 2) * len(self.text()) / of) + len(GAP)
        left = len(longest) - excess
        if left < SHORTEST:
            return False
        shorter = f'{longest[: 2 * left // 3].rstrip()}{GAP}{longest[len(longest) - left // 3 :].lstrip()}'
        self.question = self.question.replace(longest, shorter, 1)
        self.fields[self.fields.index(longest)] = shorter
        self.shortened = True
        return True


class Instruct(ExampleFn):
    """Preprocessor that words a record: {'inputs', 'targets', 'variant', 'answer', 'exemplars', 'shortened'}.

    If the run has a vocabulary, 'inputs' are token ids (they are counted to fit the exemplars) and
    'inputs_pretokenized' is the text, as from `tokenize`, which then only tokenizes the targets. 'exemplars' is the
    number of exemplars, 'answer' the answer that the prompt asks for.

    Args:
        to_item: turns a record into an item, or into None to drop it.
        exemplars: returns the records of the task's training split; without it every prompt is zero-shot.
        triggers: sentences that ask for a rationale, instead of InstructionConfig.triggers (in another language, say).
        rationale: the target with a rationale.
        shuffle_options: whether options (labels, always in one order) are listed in a random order in each prompt.
    """

    def __init__(
        self,
        family: Family,
        to_item: Callable[[Example], Item | None] = item_of,
        exemplars: Callable[[], Records] | None = None,
        *,
        triggers: Sequence[str] = (),
        rationale: str = RATIONALE,
        shuffle_options: bool = False,
    ) -> None:
        super().__init__(self.apply)
        self.__name__ = f'instruct({family.name})'
        self._family, self._to_item, self._triggers, self._rationale = family, to_item, tuple(triggers), rationale
        self._pool = Exemplars(exemplars, to_item) if exemplars else None
        self._shuffle_options = shuffle_options
        self._usable: dict[frozenset, tuple[list[Template], ...]] = {}
        plain = [layout for layout in family.exemplars if not layout.cues] or family.exemplars
        self._layouts = {False: family.exemplars, True: plain}  # by whether the wording ends with a cue

    def apply(self, example: Example, context: Context) -> Result:
        """Words one record."""
        return self.apply_block([example], [context])[0]

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        """Words many records, so that their prompts are tokenized together."""
        prompts = [self.prompt(example, context) for example, context in zip(examples, contexts, strict=True)]
        made: list[Result] = []
        for prompt, text in zip(prompts, fit_prompts(prompts, contexts), strict=True):
            if prompt is None:
                made.append(None)
                continue
            variant = ', '.join(['few-shot' if prompt.exemplars else 'zero-shot', *prompt.variant])
            result = {'inputs': '', 'targets': prompt.targets, 'answer': prompt.answer, 'variant': variant}
            made.append(result | {'exemplars': len(prompt.exemplars)} | text)
        return made

    def prompt(self, example: Example, context: Context) -> Prompt | None:
        """A record's prompt with all its drawn exemplars; None drops the record."""
        item = self._to_item(example)
        if item is None:
            return None
        self._check(item, context)
        rng = context.rng
        few, count, layout, *draws = rng.random(9).tolist()
        plan = self._plan(item, context, draws)
        question, targets = self._render(plan, item)
        answer = targets if plan.variant == INVERTED else self._shown(plan, item)
        prompt = Prompt(question, targets, answer, plan.variant, plan.template.head.format_map(item))
        prompt.fields = [item[name] for name in self._family.fields]
        pool = self._pool
        if pool is None or few >= context.instructions.few_shot or not len(pool):
            return prompt
        prompt.layout = around = pick(self._layouts[plan.template.cued], layout)
        drawn = pool.draw(1 + int(count * context.instructions.max_exemplars), rng, self._fits(plan, item))
        for number, other in drawn:
            question, targets = self._render(plan, other)
            text = around.inputs.format_map({'inputs': question}) + around.targets.format_map({'targets': targets})
            prompt.exemplars.append(text)
            density = pool.density(number, other, context.vocabulary) if context.vocabulary is not None else 0.0
            prompt.tokens.append(density * len(text))
        return prompt

    def _fits(self, plan: Plan, item: Item) -> Callable[[Item], bool]:
        """Whether another item can be an exemplar of `item`: it has what the wording needs, and other fields."""
        fields = self._family.fields
        content = [item[field] for field in fields]
        needs = plan.template.needs | {'rationale'} if plan.trigger else plan.template.needs
        needs = needs | {'options'} if plan.options is not None else needs

        def fits(other: Item) -> bool:
            return all(map(other.get, needs)) and [other[field] for field in fields] != content

        return fits

    def _plan(self, item: Item, context: Context, draws: Iterable[float]) -> Plan:
        inverse, listing, reasoning, trigger, wording, layout = draws
        settings: InstructionConfig = context.instructions
        with_list, without_list, inverted = self._templates(frozenset(name for name, value in item.items() if value))
        if inverted and inverse < settings.inverted and context.key[2].partition('/')[0] == 'train':
            return Plan(pick(inverted, wording), None, None, '', INVERTED)
        options = item.get('options') or ()
        can_list = item['answer'] in options
        listed = can_list and with_list and (listing < settings.options or not without_list)
        templates = with_list if listed else without_list
        if not templates:
            problem = f'every wording of the family {self._family.name!r} lists options or names a field that this item'
            fix = 'Add a wording with "options": false, or the field.'
            raise UserError(f'{_task(context)}: {problem} lacks: {_brief(item)}. {fix}')
        plan = Plan(pick(templates, wording), pick(self._family.options, layout) if listed else None, None, '', [])
        if listed:
            plan.variant.append('options')
            if self._shuffle_options:
                plan.order = context.rng.permutation(len(options)).tolist()
        if item.get('rationale') and reasoning < settings.rationale:
            plan.trigger = pick(self._triggers or settings.triggers, trigger)
            plan.variant.append('rationale')
        return plan

    def _templates(self, present: frozenset[str]) -> tuple[list[Template], ...]:
        """Wordings for an item with these fields: that may list options, that may do without, and inverted ones."""
        if present not in self._usable:
            there = present | {*self._family.fields, 'answer'}  # a required field may be empty
            usable = [template for template in self._family.templates if template.needs <= there]
            self._usable[present] = (
                [template for template in usable if template.options is not False],
                [template for template in usable if template.options is not True],
                [template for template in self._family.inverted if template.needs <= present],
            )
        return self._usable[present]

    def _render(self, plan: Plan, item: Item) -> tuple[str, str]:
        """An item's input and target in the plan's wording."""
        template, options = plan.template, item.get('options')
        values = item
        if plan.options is not None and options and item['answer'] in options:
            listing = plan.options.listing(self._ordered(plan, options))
            values = {**item, 'options': listing, 'answer': self._shown(plan, item)}
        inputs = (template.inputs if values is item else template.listed).format_map(values)
        if not plan.trigger:
            return inputs, template.targets.format_map(values)
        rationale = item['rationale'].strip()
        rationale += '.' if rationale[-1:].isascii() and rationale[-1:].isalnum() else ''
        inputs = f'{inputs.rstrip()}{" " if template.cued else chr(10)}{plan.trigger}'
        return inputs, self._rationale.format_map({**values, 'rationale': rationale})

    def _ordered(self, plan: Plan, options: Sequence[str]) -> list[str]:
        if plan.order is None or len(plan.order) != len(options):
            return list(options)
        return [options[number] for number in plan.order]

    def _shown(self, plan: Plan, item: Item) -> str:
        """The answer in the form that the prompt asks for: itself, or its letter."""
        options = item.get('options')
        if plan.options is None or not options or item['answer'] not in options:
            return item['answer']
        return plan.options.shown(self._ordered(plan, options), item['answer'])

    def _check(self, item: Item, context: Context) -> None:
        for name in (*self._family.fields, 'answer'):
            if not isinstance(item.get(name), str):
                problem = f'the family {self._family.name!r} needs the field {name!r} as text, the item has'
                raise UserError(f'{_task(context)}: {problem} {_brief(item)}. Fix the mapping of fields.')


def fit_prompts(prompts: Sequence[Prompt | None], contexts: Sequence[Context]) -> list[dict[str, Any]]:
    """Tokenizes prompts; drops exemplars and shortens questions until they fit in feature_lengths['inputs'].

    Returns:
        For each prompt {'inputs': int32 [S], 'inputs_pretokenized': text, 'shortened': bool}, with room for what the
        prompt format adds (an end of sequence, or the turns of a chat template); without a vocabulary {'inputs': text,
        'shortened': False}, and nothing is dropped.
    """
    made: list[dict[str, Any]] = [{} for _ in prompts]
    vocabulary = contexts[0].vocabulary if contexts else None
    waiting = [(i, prompt) for i, prompt in enumerate(prompts) if prompt is not None]
    if vocabulary is None:
        for i, prompt in waiting:
            made[i] = {'inputs': prompt.text(), 'shortened': False}
        return made
    room = _room(contexts[0])  # the same for all: a call has the prompts of one task
    for _, prompt in waiting:
        if prompt.exemplars:
            prompt.keep(room)
    while waiting:
        texts = [prompt.text() for _, prompt in waiting]
        again = []
        for (i, prompt), text, ids in zip(waiting, texts, vocabulary.encode_arrays(texts), strict=True):
            excess = len(ids) - room
            if excess > 0 and (prompt.drop(excess) or prompt.shorten(excess, len(ids))):
                again.append((i, prompt))
            else:
                made[i] = {'inputs': ids, 'inputs_pretokenized': text, 'shortened': prompt.shortened}
        waiting = again
    return made


def _room(context: Context) -> float:
    """The tokens that the text of a prompt may have."""
    around = tokens_around(context.vocabulary, context.instructions.prompt_format)
    return (context.feature_lengths.get('inputs') or math.inf) - around


def pick(choices: Sequence[Any], draw: float) -> Any:
    """One of the choices, selected by a number in [0, 1)."""
    return choices[int(draw * len(choices))]


def _task(context: Context) -> str:
    return f'task {context.key[1]}' if context.key[1] else 'a task'


def _brief(item: Item) -> str:
    return ', '.join(f'{name}={str(value)[:30]!r}' for name, value in item.items()) or 'no fields'
