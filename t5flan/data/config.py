"""Settings of a run's data: tasks, mixtures, vocabulary and batches. Standard library only, so that gin loads fast."""

import dataclasses
import os
from collections.abc import Mapping
from typing import ClassVar

from t5flan.config.checks import (
    Count,
    CountFrom0,
    ExtraIds,
    Seed,
    Share,
    as_paths,
    check_limits,
    require,
    require_one_of,
    require_text,
)
from t5flan.data.corpus_config import Denoiser, FileTask, TextFiles, check_denoisers
from t5flan.data.instruction_config import InstructionConfig, NaturalInstructionsConfig
from t5flan.data.mixture_config import Mixture, Stage
from t5flan.errors import UserError, did_you_mean

ARCHITECTURES = {'encoder_decoder': 'encoder_decoder', 'prefix_lm': 'decoder_only', 'causal_lm': 'decoder_only'}
"""Format -> the architecture it needs."""
FORMATS = tuple(ARCHITECTURES)
FEATURES = ('inputs', 'targets')
TOO_LONG = ('trim', 'drop')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything that decides which tokens a run trains on, and in which order."""

    RENAMED: ClassVar[Mapping[str, str]] = {'blends': 'mixtures'}
    TRUSTED: ClassVar[tuple[str, ...]] = ('modules',)

    mixture: str
    """A SeqIO task or mixture; `t5flan mixture` shows what it contains."""
    batch_size: Count
    """Rows per step, over all hosts."""
    feature_lengths: Mapping[str, Count]
    """Tokens per feature, such as {'inputs': 512, 'targets': 114}. A decoder-only row holds their sum."""
    vocabulary: str
    """'bytes' (ByT5's), or the path of a SentencePiece model or of a folder that `t5flan vocabulary` wrote."""
    extra_ids: ExtraIds = 100
    """Sentinels appended to a SentencePiece model that has no vocabulary.json beside it."""
    mode_tokens: tuple[str, ...] = ()
    """Tokens such as '[NLU]' that get their own ids below the sentinels, again without a vocabulary.json."""
    added_tokens: tuple[str, ...] = ()
    """More tokens with ids of their own, after all others: ('<name>', '</name>'). Those that the vocabulary has already
    keep their ids. A run that starts from a checkpoint without them gives their embeddings the mean of the others."""
    format: str = 'encoder_decoder'
    """'encoder_decoder', 'prefix_lm' (decoder-only, with full attention among the inputs) or 'causal_lm'."""
    pack: bool = True
    """Packs several examples into a row; none attends to another."""
    split: str = 'train'
    """The split of every task to read."""
    shuffle: bool = True
    """False keeps each task's examples in their own order, and the order of tasks fixed."""
    seed: Seed = 0
    """Seed of the order of examples and of everything drawn for them (spans, exemplars, templates)."""
    streams: Count | None = None
    """Streams that fill the rows of a batch; divides batch_size. None is the largest divisor up to batch_size // 8."""
    prefetch: CountFrom0 = 2
    """Batches prepared ahead in a thread; 0 prepares them in the training loop."""
    too_long: str = 'trim'
    """Examples longer than the feature lengths: 'trim' or 'drop'. Both are counted and reported."""
    file_tasks: tuple[FileTask, ...] = ()
    """Tasks made of files of inputs and targets."""
    text_files: tuple[TextFiles, ...] = ()
    """Tasks made of files of raw text."""
    modules: tuple[str, ...] = ()
    """Python modules to import first: they register your own SeqIO tasks. A checkpoint's config.gin cannot set it."""
    concatenate: Count = 1
    """Documents of raw text that are joined, in order, before they are cut into windows that fill the features; 1 cuts
    each by itself, T5 joins 128. No token is lost either way."""
    denoisers: Mapping[str, tuple[Denoiser, ...]] = dataclasses.field(default_factory=dict)
    """Mixtures of denoisers: {'mine': [@r/Denoiser(), ...]} makes CORPUS_mine of every corpus. 'ul2' and 'u_palm' exist
    already and may be replaced."""
    mixtures: tuple[Mixture, ...] = ()
    """Mixtures to define; `mixture` may name one of them."""
    stages: tuple[Stage, ...] = ()
    """The stages after `mixture`, each from a step on."""
    mixed_in: Mapping[str, Share] = dataclasses.field(default_factory=dict)
    """Task or mixture -> its share of every stage: {'c4_span_corruption': 0.05} keeps some pretraining."""
    instructions: InstructionConfig = InstructionConfig()
    """How instruction tasks are worded."""
    natural_instructions: str | None = None
    """Folder of Super-NaturalInstructions (task*.json and the split lists); None registers none of its tasks."""
    natural: NaturalInstructionsConfig = NaturalInstructionsConfig()
    """Which of its tasks are mixed."""
    cot: str | tuple[str, ...] | None = None
    """Folders or files with rationales (FLAN's .tsv, the CoT Collection's .json); stored as a tuple."""
    chat: str | tuple[str, ...] | None = None
    """Files of conversations or instruction rows (.json, .jsonl); stored as a tuple."""
    cache: str | None = None
    """A folder that `t5flan cache` wrote: tasks in it are read from there, others from their sources."""
    tfds_data_dir: str | None = None
    """The folder with TFDS's prepared data sets (`tfds build --data_dir`); None is TFDS's own, ~/tensorflow_datasets or
    the environment variable TFDS_DATA_DIR."""
    flan_collection: str | None = None
    """A folder of the published Flan collection's rows: flan_zs_opt_train.jsonl.gz and so on become the mixtures
    'flan_collection' and 'flan_collection_SUBMIXTURE'."""
    flan_redistribute: bool = False
    """'flan2022', 'flan2022_paper' and 'flan_collection': whether the submixtures that are there share the rate of
    those that are not. False stops a run that lacks one."""
    skip_broken: bool = False
    """Skips and reports tasks, rows and conversations that cannot be used, instead of stopping (--skip_broken)."""

    def __post_init__(self) -> None:
        for field in ('cot', 'chat'):
            object.__setattr__(self, field, as_paths(f'DataConfig.{field}', getattr(self, field)))
        for field in ('feature_lengths', 'mixed_in'):
            object.__setattr__(self, field, dict(getattr(self, field)))
        for field in ('file_tasks', 'text_files', 'modules', 'mode_tokens', 'added_tokens', 'mixtures', 'stages'):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, 'denoisers', {name: tuple(denoisers) for name, denoisers in self.denoisers.items()})
        for name, denoisers in self.denoisers.items():
            check_denoisers(name, denoisers)
        paths = ('natural_instructions', 'cache', 'tfds_data_dir', 'flan_collection')
        for field in ('mixture', 'vocabulary', 'split', *paths):
            if getattr(self, field) is not None or field in ('mixture', 'vocabulary', 'split'):
                require_text(f'DataConfig.{field}', getattr(self, field))
        for field in ('vocabulary', *paths):
            if (path := getattr(self, field)) is not None:
                object.__setattr__(self, field, os.path.expanduser(path))
        check_limits(self)
        require_one_of('DataConfig.format', self.format, FORMATS)
        require_one_of('DataConfig.too_long', self.too_long, TOO_LONG)
        self._check_lengths()
        self._check_stages()
        if self.streams is not None and self.batch_size % self.streams:
            problem = f'DataConfig.streams={self.streams} does not divide DataConfig.batch_size={self.batch_size}'
            raise UserError(f'{problem}. Set one of them in your .gin.')

    def _check_lengths(self) -> None:
        for feature in (
            ('targets',) if self.format == 'causal_lm' else ('inputs', 'targets')
        ):  # a plain LM has no inputs
            if feature not in self.feature_lengths:
                problem = f"DataConfig.feature_lengths={self.feature_lengths} has no length for '{feature}'"
                fix = "Set DataConfig.feature_lengths = {'inputs': N, 'targets': M} in your .gin."
                raise UserError(f'{problem}. {fix}')
        for feature in self.feature_lengths:
            if feature not in FEATURES:
                problem = f"DataConfig.feature_lengths={self.feature_lengths} has a length for '{feature}'"
                fix = 'Remove it in your .gin.'
                raise UserError(f'{problem}, expected {" and ".join(FEATURES)}{did_you_mean(feature, FEATURES)} {fix}')

    def _check_stages(self) -> None:
        starts = [0, *(stage.start_step for stage in self.stages)]
        for before, stage in zip(starts, self.stages):
            expected = f'more than {before}, the start of the stage before'
            require(stage.start_step > before, 'Stage.start_step', stage.start_step, expected, f' of {stage.mixture!r}')
        expected = f'shares that sum to less than 1, or nothing is left for {self.mixture!r}'
        require(sum(self.mixed_in.values()) < 1, 'DataConfig.mixed_in', self.mixed_in, expected)

    @property
    def stream_count(self) -> int:
        """Streams that fill a batch: `streams`, or the largest divisor of batch_size up to batch_size // 8."""
        if self.streams is not None:
            return self.streams
        most = max(1, self.batch_size // 8)
        return next(n for n in range(most, 0, -1) if self.batch_size % n == 0)
