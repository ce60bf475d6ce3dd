"""Griffe extension: what our docstrings have that its parser does not know.

- A doctest within the text is shown as code.
- An entry for several arguments, `top_k, top_p: ...`, becomes one entry for each of them.
"""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r'^( *)>>> .*\n?(?:^\1\S.*\n?)*', re.MULTILINE)
ENTRY = re.compile(r'^( {4})(\w+(?:, \w+)+)(: .*\n?(?:^ {5,}\S.*\n?)*)', re.MULTILINE)


class OurDocstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by Griffe for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = ENTRY.sub(_separate, DOCTEST.sub(_fenced, obj.docstring.value))


def _fenced(doctest: re.Match[str]) -> str:
    """A doctest with a fence around it, as far indented as itself."""
    indent, text = doctest[1], doctest[0].rstrip('\n')
    return f'{indent}```pycon\n{text}\n{indent}```\n'


def _separate(entry: re.Match[str]) -> str:
    """The same text for each name of an entry."""
    text = entry[3].rstrip('\n')
    return ''.join(f'{entry[1]}{name}{text}\n' for name in entry[2].split(', '))
