"""Griffe extension: shows the doctests of a docstring as code."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r'^( *)>>> .*\n?(?:^\1\S.*\n?)*', re.MULTILINE)


class FencedDoctests(griffe.Extension):
    """Puts a fence around every doctest before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by Griffe for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(fenced, obj.docstring.value)


def fenced(doctest: re.Match[str]) -> str:
    """A doctest with a fence around it, as far indented as itself."""
    indent, text = doctest[1], doctest[0].rstrip('\n')
    return f'{indent}```pycon\n{text}\n{indent}```\n'
