"""A task's records and its family's wordings (templates.py) become inputs and targets, another variant each time.

A record becomes an item: its fields as texts, 'answer', and where there are any 'options' (a list that holds the answer) and
a 'rationale'. The example's own random numbers choose the wording and the variant; InstructionConfig has the shares:

    zero-shot or few-shot   exemplars of the task's own training split, in the same wording, stand before the question
    options                 the prompt lists them, in one of several layouts
    rationale               a trigger asks for it; the target is the rationale and then 'So the answer is ANSWER.'
    inverted                the question for this answer is asked for (in training alone: metrics want answers)

Worked, few-shot with options (the layouts 'Options:\\n(A) …' and 'Q: …\\nA:'):

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

An exemplar never has the content of the question it stands before (the family's fields are compared, so that a question that
is in the training split twice does not bring its answer). A prompt longer than feature_lengths['inputs'] loses whole
exemplars. Where the question alone is too long, its longest field (a passage, a document) loses its middle, so that what is
asked stays whole; the example counts as cut.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.config import InstructionConfig
from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, Result
from t5flan.data.prompting.templates import ExemplarLayout, Family, OptionLayout, Template
from t5flan.errors import UserError

Item = dict[str, Any]
"""Field -> text; 'answer' -> text; where there are any, 'options' -> texts (the answer among them), 'rationale' -> text."""
RATIONALE = '{rationale} So the answer is {answer}.'
"""A target with a rationale; evaluation/answers.py finds the answer by these words."""
INVERTED = ['inverted']
GAP = ' ... '
"""Stands where a field that is too long lost its middle."""
SHORTEST = 80
"""Characters that a field keeps at least; a prompt that is too long even so is cut at its end, by the pipeline."""
POOL = 256
"""Training records that a task's exemplars are drawn from: their lengths in tokens are counted once."""
KEPT = 100_000
"""Characters of them that stay in memory, for each task: a thousand tasks take 100 MB."""


def item_of(record: Example) -> Item:
    """A record that is an item already."""
    return record


class Exemplars:
    """Items of a training split that prompts draw from: up to POOL of them, evenly spread; read when first asked for."""

    def __init__(self, records: Callable[[], Sequence[Example]], to_item: Callable[[Example], Item | None]) -> None:
        self._open, self._to_item = records, to_item
        self._records: Sequence[Example] | None = None
        self._densities: dict[int, float] = {}
        self._vocabulary: Any = None
        self._items: dict[int, Item | None] = {}
        self._room = KEPT

    def __len__(self) -> int:
        if self._records is None:
            self._records = self._open()
        return min(len(self._records), POOL)

    def item(self, number: int) -> Item | None:
        """Item `number` of the pool, None where its record makes none. The first that were read, up to KEPT, are kept."""
        if number in self._items:
            return self._items[number]
        size = len(self)  # opens the records
        item = self._to_item(self._records[number * len(self._records) // size])
        length = sum(len(value) for value in item.values()) if item else 0
        if length <= self._room:
            self._room -= length
            self._items[number] = item
        return item

    def density(self, number: int, item: Item, vocabulary: Any) -> float:
        """Tokens a character of an item's text; tokenized once for each vocabulary."""
        if vocabulary is not self._vocabulary:
            self._vocabulary, self._densities = vocabulary, {}
        if number not in self._densities:
            text = ' '.join(value for value in item.values() if isinstance(value, str))
            self._densities[number] = len(vocabulary.encode(text)) / max(1, len(text))
        return self._densities[number]

    def draw(self, count: int, rng: np.random.Generator, fits: Callable[[Item], bool]) -> list[tuple[int, Item]]:
        """`count` different items that `fits` takes, with their numbers; fewer where the pool has not as many."""
        size = len(self)
        order = (
            rng.permutation(size)
            if size <= 64
            else dict.fromkeys((rng.random(3 * count + 6) * size).astype(int).tolist())
        )
        drawn: list[tuple[int, Item]] = []
        for number in order:
            item = self.item(int(number))
            if item is not None and fits(item):
                drawn.append((int(number), item))
                if len(drawn) == count:
                    break
        return drawn


@dataclasses.dataclass(slots=True)
class Plan:
    """How one prompt is worded: the question and every exemplar alike."""

    template: Template
    options: OptionLayout | None
    order: list[int] | None
    """The order that options are listed in; None keeps their own."""
    trigger: str
    """What asks for the rationale; '' where none is wanted."""
    variant: list[str]


@dataclasses.dataclass(slots=True)
class Prompt:
    """A question with the exemplars that may stand before it."""

    question: str
    targets: str
    answer: str
    variant: list[str]
    head: str = ''
    layout: ExemplarLayout | None = None
    exemplars: list[str] = dataclasses.field(default_factory=list)
    """As they stand in the prompt, in order."""
    tokens: list[float] = dataclasses.field(default_factory=list)
    """About how many tokens each has."""
    fields: list[str] = dataclasses.field(default_factory=list)
    """The texts in the question that may be shortened."""
    shortened: bool = False

    def text(self) -> str:
        """The whole prompt."""
        if not self.exemplars:
            return (self.head + self.question).strip()
        question = self.layout.inputs.format_map({'inputs': self.question})
        return (self.head + self.layout.before + self.layout.between.join([*self.exemplars, question])).strip()

    def keep(self, limit: float) -> None:
        """Drops each exemplar that would take the prompt beyond `limit` tokens, by their estimates."""
        characters = sum(map(len, self.exemplars))
        density = sum(self.tokens) / max(1, characters)
        used = density * (len(self.head) + len(self.question))
        kept = []
        for number, tokens in enumerate(self.tokens):
            if used + tokens <= limit:
                used += tokens
                kept.append(number)
        if len(kept) < len(self.exemplars):
            self.exemplars = [self.exemplars[number] for number in kept]
            self.tokens = [self.tokens[number] for number in kept]

    def drop(self, tokens: int) -> None:
        """Drops the last exemplars, about `tokens` tokens of them and at least one."""
        while self.exemplars and tokens > 0:
            self.exemplars.pop()
            tokens -= max(1, math.floor(self.tokens.pop()))

    def shorten(self, tokens: int, of: int) -> bool:
        """Takes about `tokens` tokens, of the prompt's `of`, out of the middle of its longest field; False where it cannot.

        Two thirds of what is left of the field are its beginning.
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
    """The preprocessor that puts a record into words: {'inputs', 'targets', 'variant', 'answer', 'exemplars', 'shortened'}.

    Where the run has a vocabulary, 'inputs' holds token ids (to see that the exemplars fit they must be counted) and
    'inputs_pretokenized' the text, as `tokenize` would make of it; `tokenize` then does the targets. 'exemplars' is their
    number, 'answer' what the prompt asks for.

    Args:
        family: its wordings.
        to_item: makes an item of a record, or None to leave the record out.
        exemplars: gives the records of the task's training split; None makes every prompt zero-shot.
        triggers: sentences that ask for a rationale, in place of InstructionConfig.triggers (another language's, say).
        rationale: the target with a rationale.
        shuffle_options: whether the options (labels, always in one order) are listed in an order drawn for each prompt.
    """

    def __init__(
        self,
        family: Family,
        to_item: Callable[[Example], Item | None] = item_of,
        exemplars: Callable[[], Sequence[Example]] | None = None,
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
        self._layouts = {False: family.exemplars, True: plain}  # by whether the wording asks for the answer itself

    def apply(self, example: Example, context: Context) -> Result:
        return self.apply_block([example], [context])[0]

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        prompts = [self.prompt(example, context) for example, context in zip(examples, contexts, strict=True)]
        made: list[Result] = [
            prompt and {'inputs': '', 'targets': prompt.targets, 'answer': prompt.answer, 'variant': '', 'exemplars': 0}
            for prompt in prompts
        ]
        texts = fit_prompts(prompts, contexts)
        for result, prompt, text in zip(made, prompts, texts, strict=True):
            if result is not None:
                result.update(text)
                result['exemplars'] = len(prompt.exemplars)
                shots = 'few-shot' if prompt.exemplars else 'zero-shot'
                result['variant'] = ', '.join([shots, *prompt.variant])
        return made

    def prompt(self, example: Example, context: Context) -> Prompt | None:
        """A record's prompt with as many exemplars as were drawn, before any is dropped; None leaves the record out."""
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
        if self._pool is not None and few < context.instructions.few_shot and len(self._pool):
            prompt.layout = pick(self._layouts[plan.template.cued], layout)
            self._add_exemplars(prompt, plan, item, context, 1 + int(count * context.instructions.max_exemplars))
        return prompt

    def _add_exemplars(self, prompt: Prompt, plan: Plan, item: Item, context: Context, count: int) -> None:
        fields = self._family.fields
        content = [item[field] for field in fields]
        needs = plan.template.needs | {'rationale'} if plan.trigger else plan.template.needs
        needs = needs | {'options'} if plan.options is not None else needs

        def fits(other: Item) -> bool:
            for name in needs:
                if not other.get(name):
                    return False
            return [other[field] for field in fields] != content

        for number, other in self._pool.draw(count, context.rng, fits):
            question, targets = self._render(plan, other)
            text = prompt.layout.inputs.format_map({'inputs': question})
            text += prompt.layout.targets.format_map({'targets': targets})
            prompt.exemplars.append(text)
            density = self._pool.density(number, other, context.vocabulary) if context.vocabulary is not None else 0.0
            prompt.tokens.append(density * len(text))

    def _plan(self, item: Item, context: Context, draws: Iterable[float]) -> Plan:
        inverse, listing, reasoning, trigger, wording, layout = draws
        settings: InstructionConfig = context.instructions
        with_list, without_list, inverted = self._templates(frozenset(name for name, value in item.items() if value))
        if inverted and inverse < settings.inverted and context.key[2].partition('/')[0] == 'train':
            return Plan(pick(inverted, wording), None, None, '', INVERTED)
        options = item.get('options')
        can_list = bool(options and item['answer'] in options)
        listed = can_list and with_list and (listing < settings.options or not without_list)
        templates = with_list if listed else without_list
        if not templates:
            raise UserError(
                f'{_task(context)}: every wording of the family {self._family.name!r} lists options or a field that this item '
                f'has not: {_brief(item)}. Add a wording with "options": false, or the field.'
            )
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
        """The wordings for an item with these fields: that may list options, that need not, and the inverted."""
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
            inputs = template.listed.format_map(values)
        else:
            inputs = template.inputs.format_map(values)
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
        """The answer as the prompt asks for it: itself, or its letter."""
        options = item.get('options')
        if plan.options is None or not options or item['answer'] not in options:
            return item['answer']
        return plan.options.shown(self._ordered(plan, options), item['answer'])

    def _check(self, item: Item, context: Context) -> None:
        for name in (*self._family.fields, 'answer'):
            if not isinstance(item.get(name), str):
                raise UserError(
                    f'{_task(context)}: the family {self._family.name!r} needs the field {name!r} as text, the item has '
                    f'{_brief(item)}. Fix the mapping of its fields.'
                )


def fit_prompts(prompts: Sequence[Prompt | None], contexts: Sequence[Context]) -> list[Mapping[str, Any]]:
    """'inputs' of each prompt, with the exemplars that feature_lengths['inputs'] has room for; the others are dropped.

    Args:
        prompts: None stays {}.

    Returns:
        {'inputs': int32 [S], 'inputs_pretokenized': text, 'shortened': bool}, without the end of sequence, for which one place
        is left; without a vocabulary {'inputs': text, 'shortened': False}, and nothing is dropped.
    """
    made: list[Mapping[str, Any]] = [{} for _ in prompts]
    vocabulary = contexts[0].vocabulary if contexts else None
    waiting = [i for i, prompt in enumerate(prompts) if prompt is not None]
    if vocabulary is None:
        for i in waiting:
            made[i] = {'inputs': prompts[i].text(), 'shortened': False}
        return made
    for i in waiting:
        if prompts[i].exemplars and (limit := contexts[i].feature_lengths.get('inputs')):
            prompts[i].keep(limit - 1)
    while waiting:
        texts = [prompts[i].text() for i in waiting]
        again = []
        for i, text, ids in zip(waiting, texts, vocabulary.encode_batch(texts), strict=True):
            excess = len(ids) + 1 - (contexts[i].feature_lengths.get('inputs') or math.inf)
            if excess > 0 and prompts[i].exemplars:
                prompts[i].drop(excess)
                again.append(i)
            elif excess > 0 and prompts[i].shorten(excess, len(ids)):
                again.append(i)
            else:
                made[i] = {
                    'inputs': np.array(ids, np.int32),
                    'inputs_pretokenized': text,
                    'shortened': prompts[i].shortened,
                }
        waiting = again
    return made


def pick(choices: Sequence[Any], draw: float) -> Any:
    """One of the choices, by a number in [0, 1)."""
    return choices[int(draw * len(choices))]


def _task(context: Context) -> str:
    return f'task {context.key[1]}' if context.key[1] else 'a task'


def _brief(item: Item) -> str:
    return ', '.join(f'{name}={str(value)[:30]!r}' for name, value in item.items()) or 'no fields'
