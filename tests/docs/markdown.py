"""Reading the pages of the documentation: files, code blocks, command lines; and running a command."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Block(NamedTuple):
    """A code block: fenced (with its language and title) or indented (with neither)."""

    language: str
    title: str
    text: str


def pages() -> list[Path]:
    """Every Markdown page, the README first."""
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str) -> list[Block]:
    """The code blocks of a page, in order; fenced ones first."""
    fence = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    found = [Block(*match.groups(default='')) for match in fence.finditer(text)]
    indented = re.compile(r'(?:^ {4}.*\n|^\n(?= {4}))+', re.MULTILINE)
    return found + [Block('', '', match[0]) for match in indented.finditer(fence.sub('', text))]


def commands(text: str) -> list[str]:
    """The lines of a page's code blocks that run t5flan, continued lines joined."""
    found = []
    for block in blocks(text):
        lines = re.sub(r'\\\n\s*', '', block.text).splitlines()
        if block.language in ('', 'bash'):
            found += [line.strip() for line in lines if re.match(r'\s*(\w+=\S* )*t5flan ', line)]
    return found


def inline_commands(text: str) -> list[str]:
    """`t5flan ...` within the prose of a page."""
    prose = re.sub(r'^```.*?^```$|^ {4}.*$', '', text, flags=re.MULTILINE | re.DOTALL)
    return [' '.join(match[1].split()) for match in re.finditer(r'`(t5flan [^`]+)`', prose)]


def run(line: str) -> str:
    """What a command of the page prints; it must succeed."""
    words = shlex.split(line)
    done = subprocess.run([sys.executable, '-m', *words], capture_output=True, text=True)
    assert done.returncode == 0, f'{line}\n{done.stderr[-2000:]}'
    return done.stdout + done.stderr
