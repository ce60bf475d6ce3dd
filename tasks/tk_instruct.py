r"""Prompts of Natural Instructions exactly as Tk-Instruct has them (arXiv:2204.07705, appendix A; its ni_collator.py).

    Definition: Say whether the review is positive.

     Positive Example 1 -
    Input: I liked it.
     Output: yes.

    Now complete the following example -
    Input: It is bad.
    Output:

Texts that do not end with punctuation get a full stop, the targets do not. The first examples are taken as long as the
prompt fits in feature_lengths['inputs'].
"""

import math
import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5flan.data.preprocessing.examples import Context, Example
from t5flan.data.vocabulary.prompt_format import tokens_around
from t5flan.tasks.natural_instructions_files import TaskFile

LAYOUT = 'tk_instruct'


def follow_tk_instruct(
    task: TaskFile, examples: Sequence[Example], targets: Sequence[str], contexts: Sequence[Context]
) -> Iterator[dict[str, Any]]:
    """{'inputs', 'targets', 'answer', 'variant', 'exemplars', 'shortened'} of instances, as `Instruct` makes them."""
    vocabulary = contexts[0].vocabulary if contexts else None
    prompts = [
        prompt_parts(task, example, context.instructions.tk_instruct_examples)
        for example, context in zip(examples, contexts, strict=True)
    ]
    texts = [head + ''.join(sum(shown, [])) + question for head, shown, question in prompts]
    encoded = vocabulary.encode_batch(texts) if vocabulary is not None else [None] * len(texts)
    for number, (text, ids, target, context) in enumerate(zip(texts, encoded, targets, contexts, strict=True)):
        head, shown, question = prompts[number]
        limit = context.feature_lengths.get('inputs') or math.inf
        around = 0 if vocabulary is None else tokens_around(vocabulary, context.instructions.prompt_format)
        if vocabulary is not None and ids is not None and len(ids) + around > limit:
            shown = _fitting(head, shown, question, vocabulary, limit - around)
            text = head + ''.join(sum(shown, [])) + question
            ids = vocabulary.encode(text)
        made = {'inputs': text} if ids is None else {'inputs': np.array(ids, np.int32), 'inputs_pretokenized': text}
        count = len(sum(shown, []))
        variant = f'{"few-shot" if count else "zero-shot"}, Tk-Instruct'
        rest = {'targets': target, 'answer': target, 'variant': variant, 'exemplars': count, 'shortened': False}
        yield made | rest


def prompt_parts(task: TaskFile, example: Example, counts: tuple[int, int]) -> tuple[str, list[list[str]], str]:
    """The definition, the examples of each kind, and the question; joined, they are the prompt.

    Args:
        counts: the numbers of positive and of negative examples.
    """
    first = task.fields['Definition']
    definition = first[0].strip() if isinstance(first, list) and first[0].strip() else task.definition()
    shown: list[list[str]] = []
    for kind, count in zip(('Positive', 'Negative'), counts, strict=True):
        shown.append([])
        for number, one in enumerate(task.examples(f'{kind} Examples')[:count], 1):
            given, output = one['input'].strip(), one['outputs'][0].strip()
            title = f' {kind} Example {number} -\n'
            shown[-1].append(_stopped(f'{title}Input: {given}') + '\n' + _stopped(f' Output: {output}') + '\n\n')
    question = _stopped(f'Now complete the following example -\nInput: {example["input"].strip()}') + '\nOutput: '
    return f'{_stopped(f"Definition: {definition}")}\n\n', shown, question


def _stopped(text: str) -> str:
    return text if text[-1] in string.punctuation else f'{text}.'


def _fitting(
    head: str, shown: Sequence[Sequence[str]], question: str, vocabulary: Any, limit: float
) -> list[list[str]]:
    """The first examples of each kind with which the prompt and its end of sequence fit."""
    kept: list[list[str]] = []
    for kind in shown:
        before = head + ''.join(' '.join(one) for one in kept)  # so it is counted there
        kept.append([])
        for one in kind:
            if len(vocabulary.encode(f'{before}{" ".join(kept[-1])}{one}{question}')) > limit:
                break
            kept[-1].append(one)
    return kept
