"""The page is well-formed and self-contained, and tolerates missing and odd content."""

import base64
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from t5flan.reporting.page import (
    MAX_POINTS,
    Curves,
    Panel,
    Sample,
    Samples,
    Table,
    Text,
    save_picture,
    write_report,
)

SECTIONS = [
    Text('What', 'First <b>paragraph</b>.\n\nSecond & last.'),
    Text('Settings', 'a = 1\nb = 2', code=True),
    Table(
        'Scores',
        ['task', 'before', 'after', 'n'],
        [['add', 0.0, 97.25, 1200], ['mean', None, math.nan, 1]],
        'In percent.',
        total=True,
    ),
    Curves(
        'Loss',
        [
            Panel('train', {'loss': ([1, 2, 3], [3.0, math.nan, 1.0])}),
            Panel('empty', {'x': ([], [])}),
            Panel('rate', {'a': ([1, 2], [0.0, 1e-3]), 'b': ([1], [1e-2])}, log_y=True),
        ],
    ),
    Samples(
        'Samples',
        [
            Sample(
                '1 < 2?', {'before': '', 'after': 'yes\nindeed'}, 'yes', {'before': False, 'after': True}, 'comparison'
            )
        ],
    ),
]


class _Checker(HTMLParser):
    """Collects links and texts, and checks that tags nest."""

    def __init__(self):
        super().__init__()
        self.links, self.open, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ('src', 'srcset', 'href')]
        if tag not in ('meta', 'img', 'source'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp('report') / 'sub' / 'report.html', 'A < B', SECTIONS, 'one run')
    assert [child.name for child in path.parent.iterdir()] == ['report.html']
    return path.read_text(encoding='utf-8')


def test_page_is_well_formed_and_self_contained(page):
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.links) == 2 and all(link.startswith('data:image/svg+xml;base64,') for link in checker.links)
    assert 'http' not in re.sub(r'base64,[\w+/=]+', '', page)
    for link in checker.links:
        assert ElementTree.fromstring(base64.b64decode(link.partition(',')[2])).tag.endswith('svg')


def test_content_is_escaped_and_formatted(page):
    assert 'First &lt;b&gt;paragraph&lt;/b&gt;.' in page and '1 &lt; 2?' in page
    assert '<td class=number>97.2</td>' in page and '<td class=number>1,200</td>' in page
    assert '<dd class="right">✓ yes\nindeed</dd>' in page and '✗ <i>(nothing)</i>' in page
    assert '<tr class="total"><td>mean</td><td class=number></td><td class=number>nan</td>' in page


def test_empty_sections_are_skipped(tmp_path):
    path = write_report(
        tmp_path / 'r.html',
        'Nothing',
        [
            Text('T', ' '),
            Table('U', ['a'], []),
            Curves('V', [Panel('p', {'loss': ([1], [math.nan])})]),
            Samples('X', []),
        ],
    )
    assert '<section>' not in path.read_text()


def test_long_curves_are_thinned(tmp_path):
    def size(count):
        panel = Panel('p', {'loss': (range(count), [math.sin(x) for x in range(count)])})
        return write_report(tmp_path / f'{count}.html', 'x', [Curves('c', [panel])]).stat().st_size

    assert size(50 * MAX_POINTS) < 1.5 * size(MAX_POINTS)


def test_pictures_are_saved(tmp_path):
    for section in SECTIONS:
        if isinstance(section, Curves):
            path = save_picture(section, tmp_path / 'curves.png')
            assert path.read_bytes().startswith(b'\x89PNG')
