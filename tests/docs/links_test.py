"""Every relative link of the README and of the documentation leads somewhere."""

import re

import pytest

from tests.docs.markdown import ROOT, blocks, name_of, pages

GENERATED = {'reference/commands.md', 'reference/settings.md', 'reference/gin_files.md'}
"""Written by docs/reference.py while the site is built; `mkdocs build --strict` checks links into them."""


def headings(path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    lines = re.findall(r'^#+ (.+)$', path.read_text(encoding='utf-8'), re.MULTILINE)
    plain = [re.sub(r'[^\w\s-]', '', re.sub(r'[`*]', '', line)).strip().lower() for line in lines]
    return {re.sub(r'[-\s]+', '-', line) for line in plain}


@pytest.mark.parametrize('path', pages(), ids=name_of)
def test_relative_links_exist(path):
    text = path.read_text(encoding='utf-8')
    for block in blocks(text):
        text = text.replace(block.text, '')
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        found = (path.parent / name).resolve() if name else path
        notebook = found.with_suffix('.ipynb')
        if found.is_relative_to(ROOT / 'docs') and found.relative_to(ROOT / 'docs').as_posix() in GENERATED:
            continue
        assert found.exists() or notebook.exists(), f'{name_of(path)} links to {target}, which does not exist'
        if anchor and found.suffix == '.md':
            assert anchor in headings(found), f'{name_of(path)} links to {target}: {name or "it"} has no such heading'


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8').partition('\nnav:\n')[2]
    for path in pages()[1:]:
        assert f' {path.relative_to(ROOT / "docs").as_posix()}\n' in navigation, f'add {name_of(path)} to mkdocs.yml'
