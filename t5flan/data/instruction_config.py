"""Settings of instruction tasks: how prompts are worded, and which tasks are chosen. Standard library only."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from t5flan.config.checks import Count, Share, check_limits, require, require_one_of, require_text
from t5flan.errors import UserError

PROMPT_FORMATS = ('plain', 'newline', 'chat', 'auto')
CHAT_FORMATS = ('markers', 'template')
NATURAL_INSTRUCTIONS_LAYOUTS = ('varied', 'tk_instruct')
CHAT_MARKERS = {'system': 'System:', 'tools': 'Tools:', 'user': 'User:', 'assistant': 'Assistant:'}
CHAT_MARKERS |= {'call': 'Call:', 'observation': 'Result:'}


@dataclasses.dataclass(frozen=True)
class InstructionConfig:
    """How the examples of instruction tasks (Flan, Natural Instructions, chain of thought, chat) are worded.

    The variant of an example is drawn with the example's own random numbers: it is the same on every host, and a new
    one in the next epoch. In a .gin file: `InstructionConfig.few_shot = 0.25`.
    """

    few_shot: Share = 0.5
    """Share of the examples with exemplars in front; the Flan collection has half (arXiv:2301.13688, section 3)."""
    max_exemplars: Count = 5
    """A few-shot prompt has 1 to this many exemplars, drawn per example; fewer if they do not fit."""
    options: Share = 0.5
    """Of the examples with answer options, the share whose prompt lists them."""
    rationale: Share = 0.5
    """Of the examples with a rationale, the share whose target is the rationale and then the answer."""
    inverted: Share = 0.1
    """Of the tasks that can be inverted, the share of examples that ask for the question, given the answer. Flan 2021
    has up to 3 such templates among 10 (arXiv:2109.01652, section 2.1); fewer leave most of the loss on answers."""
    triggers: tuple[str, ...] = (
        "Let's think step by step.",
        'Work through it before you answer.',
        'Give your reasoning first, then the answer.',
        'Explain how you get there, one step after the other.',
        'Reason it out, then conclude.',
        'First show the steps, at the end the answer.',
    )
    """Sentences that request a rationale; one is drawn for each example whose target has one."""
    negative_examples: Share = 0.1
    """Natural Instructions: of the tasks with negative examples, the share of prompts that show one, explained."""
    natural_instructions_layout: str = 'varied'
    """Natural Instructions: 'varied' draws a wording for each example, with the settings above; 'tk_instruct' is the
    one layout that Tk-Instruct was trained with (arXiv:2204.07705), which the settings above do not change."""
    tk_instruct_examples: tuple[int, int] = (2, 0)
    """The numbers of positive and of negative examples in the layout 'tk_instruct'."""
    identity: str = ''
    """Chat: a system prompt for conversations that have none; '' adds none."""
    chat_format: str = 'markers'
    """Chat: how conversations are worded: with 'markers', or by the chat 'template' of the vocabulary's tokenizer, with
    the token ids of transformers' apply_chat_template. Loss is on the assistant's turns in both."""
    prompt_format: str = 'plain'
    """How rows of a decoder-only model join inputs and targets: 'plain' (both end with end of sequence, as in T5X),
    'newline' (a newline between them), 'chat' (the tokenizer's chat template), or 'auto': as the initial checkpoint was
    trained; for a converted decoder 'chat' if it has a template, else 'newline'."""
    chat_markers: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(CHAT_MARKERS))
    """Chat: the text in front of each role's turns; plain text, so that any vocabulary can encode it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, 'triggers', tuple(self.triggers))
        object.__setattr__(self, 'tk_instruct_examples', tuple(self.tk_instruct_examples))
        object.__setattr__(self, 'chat_markers', dict(self.chat_markers))
        require_one_of('InstructionConfig.chat_format', self.chat_format, CHAT_FORMATS)
        require_one_of('InstructionConfig.prompt_format', self.prompt_format, PROMPT_FORMATS)
        if set(self.chat_markers) != set(CHAT_MARKERS):
            setting, given = 'InstructionConfig.chat_markers', ', '.join(self.chat_markers) or 'none'
            expected = ', '.join(CHAT_MARKERS)
            raise UserError(f'{setting} has the roles {given}, expected {expected}. Set {setting} in your .gin.')
        for role, marker in self.chat_markers.items():
            require_text(f"InstructionConfig.chat_markers['{role}']", marker)
        check_limits(self)
        layout, counts = self.natural_instructions_layout, self.tk_instruct_examples
        require_one_of('InstructionConfig.natural_instructions_layout', layout, NATURAL_INSTRUCTIONS_LAYOUTS)
        is_pair = len(counts) == 2 and all(type(count) is int and count >= 0 for count in counts)
        require(is_pair, 'InstructionConfig.tk_instruct_examples', counts, 'two whole numbers of 0 or more')
        for trigger in self.triggers:
            require_text('InstructionConfig.triggers', trigger)
        if self.rationale and not self.triggers:
            given = f'InstructionConfig.triggers is empty and InstructionConfig.rationale={self.rationale}'
            raise UserError(f'{given}: nothing would request the rationales. Set one of them in your .gin.')


@dataclasses.dataclass(frozen=True)
class NaturalInstructionsConfig:
    """Which tasks of the folder DataConfig.natural_instructions its mixtures contain."""

    RENAMED: ClassVar[Mapping[str, str]] = {'without_categories': 'exclude_categories'}

    categories: tuple[str, ...] = ()
    """Only tasks of these categories, such as ('Question Answering',); () takes all."""
    exclude_categories: tuple[str, ...] = ()
    """No tasks of these categories."""
    languages: tuple[str, ...] = ()
    """Only tasks whose inputs and outputs are all in these languages, such as ('English',); () takes all."""
    cap: Count = 5000
    """The most examples of a task that count towards its rate, as in Flan 2022 (arXiv:2210.11416, appendix F)."""

    def __post_init__(self) -> None:
        for field in ('categories', 'exclude_categories', 'languages'):
            object.__setattr__(self, field, tuple(getattr(self, field)))
            for value in getattr(self, field):
                require_text(f'NaturalInstructionsConfig.{field}', value)
        check_limits(self)
