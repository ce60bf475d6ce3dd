r"""Chat templates: the jinja template of a tokenizer words a conversation, as transformers' `apply_chat_template`.

    [{'role': 'user', 'content': 'Hi'}]  ->  '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'

A template is somebody's code. It runs in jinja2's immutable sandbox, which has no files, modules or hidden attributes,
and within limits of loop steps and length. Whatever it does wrong is one UserError.
"""

import contextvars
import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5flan.data.vocabulary.vocabulary import CHAT_TEMPLATE, Conventions, Vocabulary
from t5flan.errors import UserError

MOST_STEPS = 1_000_000
"""Loop steps of a template, all loops together."""
MOST_CHARACTERS = 50_000_000
"""Length of any text that a template makes, and of its output."""

Message = Mapping[str, Any]
"""A turn, such as {'role': 'user', 'content': 'Hi'}."""

_steps_left = contextvars.ContextVar('steps_left', default=MOST_STEPS)
_REASONING = ('reasoning_content', 'thinking', 'reasoning')


def render(
    conventions: Conventions, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, reply: bool = False
) -> str:
    """The text of a conversation.

    Args:
        conventions: the template and its named tokens (`bos_token`).
        messages: the turns; keys whose value is None are dropped, as in transformers.
        tools: JSON schemas of functions that the template may list.
        reply: ends with the beginning of the assistant's next turn (transformers' `add_generation_prompt`).

    Raises:
        UserError: there is no template, jinja2 is missing, or the template is wrong or refuses the conversation.
    """
    if conventions.chat_template is None:
        fix = f'Put a {CHAT_TEMPLATE} into its folder'
        raise UserError(f'the vocabulary has no chat template. {fix}, or ask without one (no --chat, no chat_format).')
    values = {'tools': None if tools is None else list(tools), 'documents': None, 'add_generation_prompt': reply}
    token = _steps_left.set(MOST_STEPS)
    try:
        # A JSON copy, so that the template sees plain data alone and changes nothing.
        values |= json.loads(json.dumps({'messages': _normalized(messages), 'tools': values['tools']}))
        text = _compiled(conventions.chat_template).render(**{**conventions.named_tokens, **values})
    except ImportError:
        raise _no_jinja() from None
    except UserError:
        raise
    except Exception as error:
        raise _failed(error) from None
    finally:
        _steps_left.reset(token)
    return _bounded(text)


def require(vocabulary: Vocabulary) -> None:
    """Raises a UserError if the vocabulary has no chat template, or jinja2 cannot read it."""
    if vocabulary.conventions.chat_template is None:
        render(vocabulary.conventions, [])
    try:
        _compiled(vocabulary.conventions.chat_template)
    except ImportError:
        raise _no_jinja() from None
    except Exception as error:
        raise _failed(error) from None


def _no_jinja() -> UserError:
    return UserError('chat templates need jinja2: pip install "jinja2>=3.1.6".')


def encode(
    vocabulary: Vocabulary, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, reply: bool = False
) -> list[int]:
    """The ids of a conversation, those of `apply_chat_template(..., tokenize=True)`; see `render`."""
    return vocabulary.encode_rendered(render(vocabulary.conventions, messages, tools=tools, reply=reply))


def encode_with_spans(
    vocabulary: Vocabulary, messages: Sequence[Message], *, tools: Sequence[Any] | None = None
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a conversation, and where the assistant's turns are: [start, end) of each.

    A turn is what the template adds after the beginning of the assistant's turn: the reply and its end. It is found by
    rendering the turns before it, so the template must not change these later.

    Raises:
        UserError: see `render`; or the template changes earlier turns when later ones follow.
    """
    words = functools.partial(render, vocabulary.conventions, tools=tools)
    whole = words(messages)
    places: list[int] = []
    for i, message in enumerate(messages):
        if message['role'] != 'assistant':
            continue
        before, after = words(messages[:i], reply=True), words(messages[: i + 1])
        if not (whole.startswith(after) and after.startswith(before)):
            problem = f'the chat template words the turns up to turn {i + 1} in another way when later turns follow'
            raise UserError(f"{problem}: its loss cannot be placed. Set InstructionConfig.chat_format='markers'.")
        places += [len(before), len(after)]
    counts = vocabulary.rendered_tokens_before(whole, places)
    return vocabulary.encode_rendered(whole), list(zip(counts[::2], counts[1::2]))


def _normalized(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages without None, and with reasoning under the names that templates read, as in transformers."""
    made = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None}
        reasoning = next((kept[key] for key in _REASONING if key in kept), None)
        made.append(kept if reasoning is None else {'thinking': reasoning, **kept, 'reasoning_content': reasoning})
    return made


def _failed(error: Exception) -> UserError:
    what = ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__
    line = getattr(error, 'lineno', None)
    where = f' (line {line})' if line else ''
    return UserError(f'the chat template fails{where}: {what}. Correct {CHAT_TEMPLATE} or the conversation.')


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, bytes, list, tuple)) and len(value) > MOST_CHARACTERS:
        raise UserError(f'the chat template makes a text of more than {MOST_CHARACTERS:,} characters. Correct it.')
    return value


def _counted(values: Iterable[Any]) -> list[Any]:
    """The values of a loop, which count towards the limit of steps."""
    made = list(values)
    left = _steps_left.get() - len(made) - 1
    _steps_left.set(left)
    if left < 0:
        raise UserError(f'the chat template takes more than {MOST_STEPS:,} loop steps. Correct it.')
    return made


@functools.lru_cache(8)
def _compiled(template: str) -> Any:
    """The compiled template, in an environment with what transformers gives to templates."""
    import jinja2
    from jinja2 import nodes

    environment = _environment()
    tree = environment.parse(template)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, 'counted', [], [], None, None)
    for joined in list(tree.find_all(nodes.Concat)):
        joined.nodes = [nodes.Filter(one, 'bounded', [], [], None, None) for one in joined.nodes]
    nodes.Node.set_environment(tree, environment)
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def _environment() -> Any:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}, which marks replies for transformers, has no effect."""

        tags = {'generation'}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({'+', '*', '**', '%'})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [x if isinstance(x, int) else len(x) if hasattr(x, '__len__') else 1 for x in (left, right)]
            texts = any(isinstance(x, (str, list, tuple)) for x in (left, right))
            too_much = operator == '*' and texts and sizes[0] * sizes[1] > MOST_CHARACTERS
            too_much |= operator == '**' and max(map(abs, sizes)) > 1000
            too_much |= operator == '%' and isinstance(left, str) and bool(re.search(r'%[^a-zA-Z%]*(\d{5}|\*)', left))
            if too_much:
                raise UserError(f'the chat template computes too large a value with {operator!r}. Correct it.')
            return _bounded(super().call_binop(context, operator, left, right))

        def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                if isinstance(value, int) and abs(value) > MOST_CHARACTERS:
                    raise UserError(f'the chat template calls a function with the number {value}. Correct it.')
            return _bounded(super().call(context, function, *args, **kwargs))

    class Namespace(jinja2.utils.Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith('_'):
                raise jinja2.exceptions.SecurityError(f'namespaces take no attribute {name!r}')
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, 'jinja2.ext.loopcontrols'])
    made.filters |= {'tojson': _to_json, 'counted': _counted, 'bounded': _bounded}
    for name in ('center', 'indent', 'wordwrap', 'format'):  # could pad a text to any length
        made.filters[name] = _padding(made.filters[name])
    made.globals |= {'raise_exception': raise_exception, 'strftime_now': _now, 'namespace': Namespace}
    made.globals['dict'] = lambda *args, **kwargs: dict(*args, **kwargs)
    del made.globals['lipsum']
    return made


def _padding(filter: Any) -> Any:
    @functools.wraps(filter)
    def limited(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if (isinstance(value, int) and value > 10_000) or (
                isinstance(value, str) and re.search(r'%\D*\d{5}', value)
            ):
                raise UserError('the chat template pads a text to more than 10,000 characters. Correct it.')
        return filter(*args, **kwargs)

    return limited


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
