"""Old module paths, understood for one release: `from t5flan.data.vocabularies import load_vocabulary` still works.

`t5flan/__init__.py` installs `MovedModules` after the standard finders, so it sees only modules that do not exist. An
old module becomes a stand-in that looks its names up in the new modules and warns once.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    't5flan.annotations': ('config.annotations',),
    't5flan.arguments': ('commands.arguments',),
    't5flan.cache': ('corpora.cache',),
    't5flan.convert': ('conversion.convert',),
    't5flan.evaluate': ('evaluation.evaluator', 'evaluation.measures', 'evaluation.terminal'),
    't5flan.gin_syntax': ('config.gin_syntax',),
    't5flan.infer': ('evaluation.inference',),
    't5flan.memorization': ('evaluation.memorization',),
    't5flan.rationales': ('synthesis.rationales',),
    't5flan.report': ('reporting.run_report',),
    't5flan.train': ('training.trainer', 'training.description'),
    't5flan.data.blends': ('data.mixtures.registration',),
    't5flan.data.broken': ('data.skipped',),
    't5flan.data.cache': ('data.mixtures.cache',),
    't5flan.data.checks': ('config.checks',),
    't5flan.data.controls': ('data.preprocessing.controls',),
    't5flan.data.conversations': ('data.prompting.conversations',),
    't5flan.data.deduplication': ('corpora.deduplication',),
    't5flan.data.denoising': ('data.preprocessing.denoising', 'data.preprocessing.denoisers'),
    't5flan.data.describe': ('reporting.mixture_report',),
    't5flan.data.examples': (
        'data.preprocessing.examples',
        'data.preprocessing.tokenization',
        'data.preprocessing.joining',
        'data.randomness',
        'data.records.text_files',
    ),
    't5flan.data.features': ('data.batches.converter', 'data.preprocessing.features'),
    't5flan.data.file_index': ('data.records.file_index',),
    't5flan.data.instructions': ('data.prompting.instructions',),
    't5flan.data.json_files': ('data.records.json_files',),
    't5flan.data.mixing': ('data.mixtures.mixing', 'data.randomness'),
    't5flan.data.packing': ('data.batches.packing',),
    't5flan.data.pipeline': ('data.batches.pipeline', 'data.batches.streams'),
    't5flan.data.seqio_bridge': ('data.vocabulary.seqio_vocabulary', 'data.records.tf_values'),
    't5flan.data.sources': ('data.records.sources',),
    't5flan.data.stages': ('data.mixtures.stages',),
    't5flan.data.streams': ('data.mixtures.readers',),
    't5flan.data.templates': ('data.prompting.templates',),
    't5flan.data.text_files': ('data.records.text_files',),
    't5flan.data.tokenizer_json': ('data.vocabulary.tokenizer_json',),
    't5flan.data.vocabularies': (
        'data.vocabulary.vocabulary',
        'data.vocabulary.loading',
        'data.vocabulary.sentencepiece_model',
        'data.vocabulary.byte_level',
        'data.vocabulary.training',
        'files',
    ),
    't5flan.data.vocabulary_training': ('data.vocabulary.training',),
    't5flan.evaluation.answers': ('scoring.answers',),
    't5flan.evaluation.metrics': ('scoring.metrics',),
    't5flan.evaluation.report': ('reporting.page',),
    't5flan.kernels.flash_gpu': ('kernels.gpu.flash',),
    't5flan.kernels.flash_tpu': ('kernels.tpu.flash',),
    't5flan.tasks.flan_records': ('tasks.flan.records',),
    't5flan.tasks.flan_table': ('tasks.flan.table',),
    't5flan.training.journal': ('training.metric_writer',),
    't5flan.training.metrics': ('training.throughput',),
}
"""Old module -> the modules that hold its names now, without the leading `t5flan.`."""


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `MOVED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a moved module, None for any other."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: types.ModuleType) -> None:
        """Lets the stand-in look its names up in the new modules."""
        homes = [f't5flan.{name}' for name in MOVED[module.__name__]]
        warnings.warn(f'{module.__name__} is now {", ".join(homes)}', FutureWarning, stacklevel=2)

        def find(name: str) -> Any:
            for home in homes if not name.startswith('__') else ():
                if hasattr(found := importlib.import_module(home), name):
                    return getattr(found, name)
            raise AttributeError(f'module {module.__name__!r} has no attribute {name!r}')

        module.__getattr__ = find  # type: ignore[method-assign]  # PEP 562


def install() -> None:
    """Adds the finder once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
