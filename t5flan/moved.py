"""Old module paths, understood for one release: `from t5flan.data.vocabularies import load_vocabulary` still works.

`t5flan/__init__.py` installs `MovedModules` after the standard finders, so it only sees modules that do not exist. An
old module becomes a stand-in that looks its names up in the new modules and warns once.
"""

import importlib
import importlib.machinery
import sys
import types
import warnings
from typing import Any, cast

_TABLE = """
annotations config.annotations
arguments commands.arguments
cache corpora.cache
convert conversion.convert
data.blends data.mixtures.registration
data.broken data.skipped
data.cache data.mixtures.cache
data.checks config.checks
data.controls data.preprocessing.controls
data.conversations data.prompting.conversations
data.deduplication corpora.deduplication
data.denoising data.preprocessing.denoising data.preprocessing.denoisers
data.describe reporting.mixture_report
data.examples data.preprocessing.examples data.preprocessing.tokenization data.preprocessing.joining
data.examples data.randomness data.records.text_files
data.features data.batches.converter data.preprocessing.features
data.file_index data.records.file_index
data.instructions data.prompting.instructions
data.json_files data.records.json_files
data.mixing data.mixtures.mixing data.randomness
data.packing data.batches.packing
data.pipeline data.batches.pipeline data.batches.streams
data.seqio_bridge data.vocabulary.seqio_vocabulary data.records.tf_values
data.sources data.records.sources
data.stages data.mixtures.stages
data.streams data.mixtures.readers
data.templates data.prompting.templates
data.text_files data.records.text_files
data.tokenizer_json data.vocabulary.tokenizer_json
data.vocabularies data.vocabulary.vocabulary data.vocabulary.loading data.vocabulary.sentencepiece_model
data.vocabularies data.vocabulary.byte_level data.vocabulary.training files
data.vocabulary_training data.vocabulary.training
evaluate evaluation.evaluator evaluation.measures evaluation.terminal
evaluation.answers scoring.answers
evaluation.metrics scoring.metrics
evaluation.report reporting.page
gin_syntax config.gin_syntax
infer evaluation.inference
kernels.flash_gpu kernels.gpu.flash
kernels.flash_tpu kernels.tpu.flash
memorization evaluation.memorization
rationales synthesis.rationales
report reporting.run_report
tasks.flan_records tasks.flan.records
tasks.flan_table tasks.flan.table
train training.trainer training.description
training.journal training.metric_writer
training.metrics training.throughput
"""
"""Old module, then the modules that hold its names now, all without the leading `t5flan.`."""
MOVED: dict[str, tuple[str, ...]] = {}
for _old, *_new in map(str.split, _TABLE.strip().splitlines()):
    MOVED[f't5flan.{_old}'] = (*MOVED.get(f't5flan.{_old}', ()), *_new)


class MovedModules:
    """Finds and loads the modules of `MOVED`.

    It has no base class: importlib.abc would be a tenth of the command line's start.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The spec of a moved module, None for any other."""
        return importlib.machinery.ModuleSpec(fullname, cast(Any, self)) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """An ordinary module."""

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
        sys.meta_path.append(cast(Any, MovedModules()))
