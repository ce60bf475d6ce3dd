"""Raw text corpora: C4 and mC4 through TFDS, local .txt and .jsonl files, and the documentation of the running Python.

Every corpus has three tasks, NAME_span_corruption and NAME_prefix_lm (for any format) and NAME_causal_lm (for
decoder-only models), and the mixtures of denoisers of ul2.py: NAME_ul2, NAME_u_palm.
"""

import ast
import functools
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5flan.data.corpus_config import Control, TextFiles
from t5flan.data.mixtures import definitions
from t5flan.data.preprocessing.controls import control_token
from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, example_fn
from t5flan.data.preprocessing.joining import join_documents
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.randomness import stable_hash
from t5flan.data.records.file_index import store
from t5flan.data.records.text_files import chunk_text, is_held_out, match_texts, open_text
from t5flan.errors import UserError
from t5flan.files import cache_folder

STDLIB_DOCS = 'stdlib_docs'
_SKIPPED_FOLDERS = {
    'site-packages', 'dist-packages', 'test', 'tests', 'idlelib', 'lib2to3', 'turtledemo', '__pycache__',
}  # fmt: skip
_SHORTEST = 200  # characters: shorter docstrings are signatures and one-liners
_CHUNK = 2000
_HELD_OUT = 0.02
_MC4_LANGUAGES = """
    af am ar az be bg bg-Latn bn ca ceb co cs cy da de el el-Latn en eo es et eu fa fi fil fr fy ga gd gl gu ha haw hi
    hi-Latn hmn ht hu hy id ig is it iw ja ja-Latn jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt my ne
    nl no ny pa pl ps pt ro ru ru-Latn sd si sk sl sm sn so sq sr st su sv sw ta te tg th tr uk ur uz vi xh yi yo zh
    zh-Latn zu
"""
MC4_LANGUAGES = tuple(_MC4_LANGUAGES.split())
"""Languages of TFDS's c4/multilingual; task names have "_" for "-": mc4_fr_span_corruption, mc4_ja_Latn_prefix_lm."""
_TFDS = 'C4 and mC4'
_registered: dict[str, Any] = {}


@example_fn
def text_as_targets(example: Example, context: Context, *, field: str = 'text', kept: Sequence[str] = ()) -> Example:
    """Renames a document's text to 'targets', which tokenizer and denoisers read; keeps the `kept` fields."""
    return {name: example[name] for name in kept} | {'targets': example[field]}


@example_fn
def without_text(example: Example, context: Context) -> Example:
    """Drops the text of a tokenized document, which halves the size of a cache."""
    return {name: value for name, value in example.items() if name != 'targets_pretokenized'}


def objectives() -> dict[str, Sequence[ExampleFn]]:
    """Objective -> the preprocessors that turn tokens into examples."""
    from t5flan.data.preprocessing import denoising

    return {
        'span_corruption': (join_documents, denoising.span_corruption, append_eos),
        'prefix_lm': (join_documents, denoising.prefix_lm, append_eos),
        'causal_lm': (denoising.causal_lm,),  # end of sequence ends a document, not every window
    }


def register_corpus(name: str, source: Any, controls: Sequence[Control] = ()) -> None:
    """Registers the tasks and mixtures of a corpus.

    Args:
        source: an IndexedSource or a seqio.DataSource of records with 'text' and the scores that `controls` name.
        controls: control tokens to put in front of texts.
    """
    from t5flan.tasks import ul2

    tokens: list[ExampleFn] = [text_as_targets.bind(kept=tuple(control.field for control in controls)), tokenize]
    if not controls:  # control_token hashes the text
        tokens.append(without_text)
    cached: tuple[Any, ...] = (*[function.before_cache() for function in tokens], definitions.CachePlace())
    begin = (*cached, *[control_token.bind(control=control) for control in controls])
    for objective, functions in objectives().items():
        features = ('targets',) if objective == 'causal_lm' else definitions.FEATURES
        definitions.add_task(f'{name}_{objective}', source, [*begin, *functions], features)
    ul2.register_corpus(name, source, (*begin, join_documents))


def register() -> None:
    """Registers the standard library's documentation, C4 and mC4 (one corpus per language); nothing is read yet."""
    register_docs()
    register_tfds()


def register_docs() -> None:
    """Registers the standard library's documentation, without SeqIO if it is not imported."""
    from t5flan.data.records.sources import IndexedSource

    if STDLIB_DOCS in _registered:
        return
    _registered[STDLIB_DOCS] = None
    docs = IndexedSource({split: functools.partial(stdlib_docs, split) for split in ('train', 'validation')})
    register_corpus(STDLIB_DOCS, docs)
    if not definitions.is_published():
        definitions.reserve(f'{name}_{objective}' for name in ('c4', *_mc4_corpora()) for objective in objectives())


def register_tfds() -> None:
    """Registers the corpora that TFDS reads: C4 and mC4."""
    if _TFDS in _registered:
        return
    seqio = definitions.publish()
    _registered[_TFDS] = None
    register_corpus('c4', seqio.TfdsDataSource(tfds_name='c4/en:3.1.0', splits=['train', 'validation']))
    for name, language in _mc4_corpora().items():
        splits = {'train': language, 'validation': f'{language}-validation'}
        source = seqio.TfdsDataSource(tfds_name='c4/multilingual:3.1.0', splits=splits)
        register_corpus(name, source)


def _mc4_corpora() -> dict[str, str]:
    """Name -> language of the corpora of mC4."""
    return {f'mc4_{language.replace("-", "_")}': language for language in MC4_LANGUAGES}


def register_files(files: TextFiles) -> None:
    """Registers the tasks of local text files; calling it again with the same settings changes nothing.

    Raises:
        UserError: a file is missing, or the name is taken.
    """
    from t5flan.data.records.sources import IndexedSource

    if _registered.get(files.name) == files:
        return
    taken = {f'{files.name}_{objective}' for objective in objectives()} & definitions.task_names()
    if taken:
        raise UserError(f'TextFiles.name={files.name!r}: the task {min(taken)} exists already. Set another name.')
    splits = ('train', 'validation')
    for split in splits:
        if pattern := getattr(files, split):
            match_texts(pattern, f'TextFiles.{split}')
    source = IndexedSource({split: functools.partial(open_text, files, split) for split in splits})
    register_corpus(files.name, source, files.controls)
    _registered[files.name] = files


# -- The documentation of the running Python's standard library --------------------------------------------------------


def stdlib_docs(split: str) -> list[dict[str, str]]:
    """Chunks of the standard library's documentation; a hash of its text holds a document out for 'validation'."""
    held_out = split == 'validation'
    documents = [text for text in stdlib_documents() if is_held_out(text, _HELD_OUT) == held_out]
    return [{'text': chunk} for text in documents for chunk in chunk_text(text, _CHUNK)]


@functools.cache
def stdlib_documents() -> tuple[str, ...]:
    """Docstrings and help topics of this Python, each once, in an order that depends only on them.

    Reading the sources takes seconds, so the result is stored in the cache folder, by Python version.
    """
    cache = cache_folder() / f'stdlib_docs-1-{sys.implementation.name}-{sys.version.split()[0]}.json'
    try:
        return tuple(json.loads(cache.read_text('utf-8')))
    except (OSError, ValueError):  # missing, or written by another program
        pass
    stdlib = Path(sysconfig.get_path('stdlib'))
    documents = sorted(set(_read_documents(stdlib)), key=stable_hash)
    if not documents:
        raise UserError(f'{stdlib} has no Python sources with documentation. Set DataConfig.mixture to your own text.')
    store(cache, json.dumps(documents, ensure_ascii=False).encode('utf-8'))
    return tuple(documents)


def _read_documents(stdlib: Path) -> Iterator[str]:
    """Long docstrings of every source file under `stdlib`, and pydoc's help topics; nothing is imported."""
    for folder, folders, files in os.walk(stdlib):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix != '.py':
                continue
            try:
                tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue  # broken syntax in test data, files for another Python
            yield from filter(_is_prose, _topics(tree) if file == 'topics.py' else _docstrings(tree))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node, clean=True) or ''


def _topics(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield inspect.cleandoc(value.value)


def _is_prose(text: str) -> bool:
    return len(text) >= _SHORTEST and text.translate({10: ' ', 9: ' '}).isprintable()
