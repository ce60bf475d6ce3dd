"""MkDocs hook: shows the executed notebooks of docs/ as pages, with the outputs that are saved in them."""

import base64
import json
import re
from pathlib import PurePosixPath
from typing import Any


def on_files(files: Any, config: Any) -> Any:
    """Adds a page beside each notebook; the notebook itself can be downloaded from it."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.src_uri.endswith('.ipynb'):
            path = PurePosixPath(file.src_uri)
            text, pictures = to_markdown(json.loads(file.content_string), path.stem)
            note = f'!!! note ""\n\n    This page is a notebook: [download it]({path.name}).\n'
            heading, _, rest = text.partition('\n')
            pages = {f'{path.stem}.md': f'{heading}\n\n{note}\n{rest}', **pictures}
            for name, content in pages.items():
                files.append(File.generated(config, str(path.parent / name), content=content))
    return files


def to_markdown(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name.

    Raises:
        ValueError: a code cell was not executed, or ended with an error.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(notebook['cells'], 1):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(source)
            continue
        if cell['execution_count'] is None:
            raise ValueError(f'cell {number} of {stem}.ipynb was not executed')
        parts.append(_code(source))
        for output in cell['outputs'] if not source.startswith('%%writefile') else ():
            parts.append(_output(output, f'{stem}_{number}', pictures))
    return '\n\n'.join(parts) + '\n', pictures


def _code(source: str) -> str:
    """A code cell; `%%bash` and `%%writefile FILE` become a block of their language."""
    first, _, rest = source.partition('\n')
    if first == '%%bash':
        return _fenced(rest, 'bash')
    if first.startswith('%%writefile '):
        name = first.split()[1]
        return _fenced(rest, f'{PurePosixPath(name).suffix[1:]} title="{name}"')
    return _fenced(source, 'python')


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    if output['output_type'] == 'error':
        raise ValueError(f'{name} ended with {output["ename"]}')
    if output['output_type'] == 'stream':
        return _fenced(re.sub(r'\x1b\[[0-9;]*m', '', ''.join(output['text'])), 'text')  # without terminal colours
    data = output['data']
    if 'image/png' in data:
        file = f'{name}_{len(pictures)}.png'
        pictures[file] = base64.b64decode(data['image/png'])
        return f'![Output of the cell above]({file})'
    return _fenced(''.join(data['text/plain']), 'text')


def _fenced(text: str, language: str) -> str:
    return f'```{language}\n{text.rstrip()}\n```'
