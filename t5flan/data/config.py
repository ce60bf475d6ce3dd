"""What a run trains on: the settings of text, tasks, vocabulary and batches. Standard library only, so that gin loads fast."""

import dataclasses
from collections.abc import Mapping

from t5flan.config.checks import as_paths, require_count, require_one_of, require_share, require_text
from t5flan.data.corpus_config import Denoiser, TextFiles, check_denoisers
from t5flan.errors import UserError

FORMATS = ('encoder_decoder', 'prefix_lm', 'causal_lm')
TOO_LONG = ('trim', 'drop')
CHAT_MARKERS = {
    'system': 'System:',
    'tools': 'Tools:',
    'user': 'User:',
    'assistant': 'Assistant:',
    'call': 'Call:',
    'observation': 'Result:',
}


@dataclasses.dataclass(frozen=True)
class FileTask:
    """A file of inputs and targets that becomes a task by gin alone.

    In a .gin file:
        FileTask.name = 'my_task'
        FileTask.train = 'data/train.jsonl'
        DataConfig.file_tasks = [@FileTask()]
        DataConfig.mixture = 'my_task'
    With several files, one gin scope each: `a/FileTask.train = …`, `DataConfig.file_tasks = [@a/FileTask(), @b/FileTask()]`.
    """

    name: str
    """The task's name, as DataConfig.mixture calls it."""
    train: str
    """Path or glob of .jsonl, .tsv or .csv files (TSV and CSV with a header line)."""
    validation: str | None = None
    """The same for validation; None holds out `held_out` of train, chosen by a hash of the example."""
    test: str | None = None
    input_field: str = 'inputs'
    """The JSON key or column that holds the input text."""
    target_field: str = 'targets'
    template: str = '{input}'
    """The input as the model sees it: `{input}` is the input field, `{OTHER}` any other field of the row."""
    held_out: float = 0.02
    """Share of train held out for validation where no validation file is given (at least one example)."""
    rate: float = 1.0
    """Weight of this task where several file tasks are mixed (mixture 'file_tasks')."""

    def __post_init__(self) -> None:
        for field in ('name', 'train', 'input_field', 'target_field', 'template'):
            require_text(f'FileTask.{field}', getattr(self, field))
        if not 0.0 < self.held_out < 1.0:
            raise UserError(
                f'FileTask.held_out={self.held_out} must lie between 0 and 1. Set FileTask.held_out in your .gin.'
            )
        if not self.rate > 0:
            raise UserError(f'FileTask.rate={self.rate} must be above 0. Set FileTask.rate in your .gin.')


@dataclasses.dataclass(frozen=True)
class Blend:
    """A mixture of tasks and mixtures that gin alone makes; blends may hold blends.

    By shares, each part keeping its own rates inside, and by the number of examples, as Flan 2022 does:
        tasks/Blend.name = 'tasks'
        tasks/Blend.by_examples = ['natural_instructions', 'cot']
        tasks/Blend.cap = 5000
        all/Blend.name = 'all'
        all/Blend.shares = {'tasks': 0.9, 'chat': 0.1}
        DataConfig.blends = [@tasks/Blend(), @all/Blend()]
        DataConfig.mixture = 'all'
    A name may be a pattern: 'cot_*' stands for every task of such a name.
    """

    name: str
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Task or mixture -> its weight; they need not sum to 1."""
    by_examples: tuple[str, ...] = ()
    """Tasks and mixtures whose tasks each weigh min(examples, cap) ** (1 / temperature), examples being those of 'train'."""
    cap: int | None = None
    """Examples counted of one task at most; None counts all."""
    caps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Task or part -> a cap of its own, before `cap`."""
    temperature: float = 1.0
    """1 is in proportion, large is evenly; mT5's exponent alpha = 0.3 is a temperature of 1 / 0.3."""
    keep_rates: bool = False
    """True: a mixture in `by_examples` weighs as one, by the examples of its largest task (its denoisers read the same text), and
    keeps its own rates inside: languages by their size, each with UL2's denoisers."""
    without: tuple[str, ...] = ()
    """Tasks (or patterns) left out: those held out to be tested on, say."""

    def __post_init__(self) -> None:
        for field in ('by_examples', 'without'):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field in ('shares', 'caps'):
            object.__setattr__(self, field, dict(getattr(self, field)))
        require_text('Blend.name', self.name)
        if bool(self.shares) == bool(self.by_examples):
            found = 'both shares and' if self.shares else 'neither shares nor'
            raise UserError(
                f'Blend {self.name!r} has {found} by_examples, one is wanted. Set Blend.shares or Blend.by_examples in your .gin.'
            )
        for part, share in self.shares.items():
            if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share < float('inf'):
                raise UserError(
                    f"Blend.shares['{part}']={share!r} of {self.name!r} must be above 0. Set it in your .gin."
                )
        if self.cap is not None:
            require_count('Blend.cap', self.cap)
        for part, cap in self.caps.items():
            require_count(f"Blend.caps['{part}']", cap)
        if (self.cap is not None or self.caps or self.temperature != 1 or self.keep_rates) and not self.by_examples:
            raise UserError(
                f'Blend {self.name!r} has shares, which know no cap, temperature or keep_rates. Set Blend.by_examples instead, or '
                'take them out of your .gin.'
            )
        if not 0 < self.temperature < float('inf'):
            raise UserError(
                f'Blend.temperature={self.temperature} of {self.name!r} must be above 0. Set it in your .gin.'
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """From a step on, another mixture: task instructions first, then chat.

    DataConfig.mixture = 'natural_instructions'
    Stage.mixture = 'chat'
    Stage.begins = 8000
    Stage.former = 0.1
    DataConfig.stages = [@Stage()]
    """

    mixture: str
    begins: int
    """The batches before it: a stage that begins at 8000 gives step 8001 its batch."""
    former: float = 0.0
    """Share of the examples that still come from what was mixed before."""

    def __post_init__(self) -> None:
        require_text('Stage.mixture', self.mixture)
        require_count('Stage.begins', self.begins)
        require_share('Stage.former', self.former)
        if self.former == 1:
            raise UserError(
                f'Stage.former=1 leaves nothing for {self.mixture!r}. Set Stage.former below 1 in your .gin.'
            )


@dataclasses.dataclass(frozen=True)
class InstructionConfig:
    """How the examples of instruction tasks (Flan, Natural Instructions, chain of thought, chat) are put into words.

    The variant of an example is drawn with the example's own random numbers, so that it is the same on every host and
    another in the next epoch. In a .gin file, without more: `InstructionConfig.few_shot = 0.25`.
    """

    few_shot: float = 0.5
    """Share of the examples with exemplars in front; half and half is the Flan collection's (arXiv:2301.13688, section 3)."""
    max_exemplars: int = 5
    """A few-shot prompt has 1 to this many exemplars, drawn per example; fewer where they do not fit."""
    options: float = 0.5
    """Share, of the examples that have answer options, whose prompt lists them."""
    rationale: float = 0.5
    """Share, of the examples that have a rationale, whose target is the rationale and then the answer."""
    inverted: float = 0.1
    """Share, of the tasks that can be turned round, that write the question for an answer. Flan 2021 has up to 3 such among
    10 templates of a task (arXiv:2109.01652, section 2.1); less leaves most of the loss on answers."""
    triggers: tuple[str, ...] = (
        "Let's think step by step.",
        'Work through it before you answer.',
        'Give your reasoning first, then the answer.',
        'Explain how you get there, one step after the other.',
        'Reason it out, then conclude.',
        'First show the steps, at the end the answer.',
    )
    """Sentences that ask for a rationale; one is drawn per example whose target has one."""
    negative_examples: float = 0.1
    """Natural Instructions: share of the prompts, of tasks that have wrong examples, that show one and say why it is wrong."""
    identity: str = ''
    """Chat: an identity prompt put in front of conversations that bring none; '' puts none."""
    chat_markers: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(CHAT_MARKERS))
    """Chat: the words in front of what each role says. Plain text, so that any vocabulary can write it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, 'triggers', tuple(self.triggers))
        object.__setattr__(self, 'chat_markers', dict(self.chat_markers))
        if set(self.chat_markers) != set(CHAT_MARKERS):
            raise UserError(
                f'InstructionConfig.chat_markers has the roles {", ".join(self.chat_markers) or "none"}, expected '
                f'{", ".join(CHAT_MARKERS)}. Set InstructionConfig.chat_markers in your .gin.'
            )
        for role, marker in self.chat_markers.items():
            require_text(f"InstructionConfig.chat_markers['{role}']", marker)
        for field in ('few_shot', 'options', 'rationale', 'inverted', 'negative_examples'):
            require_share(f'InstructionConfig.{field}', getattr(self, field))
        require_count('InstructionConfig.max_exemplars', self.max_exemplars)
        for trigger in self.triggers:
            require_text('InstructionConfig.triggers', trigger)
        if self.rationale and not self.triggers:
            raise UserError(
                f'InstructionConfig.triggers is empty and InstructionConfig.rationale={self.rationale}: nothing would ask for '
                'the rationales. Set one of them in your .gin.'
            )


@dataclasses.dataclass(frozen=True)
class NaturalInstructionsConfig:
    """Which tasks of the folder DataConfig.natural_instructions its mixtures hold."""

    categories: tuple[str, ...] = ()
    """Only tasks of one of these categories, e.g. ('Question Answering',); () takes all."""
    without_categories: tuple[str, ...] = ()
    """No task of one of these."""
    languages: tuple[str, ...] = ()
    """Only tasks that read and write these languages alone, e.g. ('English',); () takes all."""
    cap: int = 5000
    """Examples of a task that count at most towards its rate; Flan 2022's (arXiv:2210.11416, appendix F)."""

    def __post_init__(self) -> None:
        for field in ('categories', 'without_categories', 'languages'):
            object.__setattr__(self, field, tuple(getattr(self, field)))
            for value in getattr(self, field):
                require_text(f'NaturalInstructionsConfig.{field}', value)
        require_count('NaturalInstructionsConfig.cap', self.cap)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything that decides which tokens a run sees, and in which order."""

    mixture: str
    """A SeqIO task or mixture; `t5flan mixture` shows what it holds."""
    batch_size: int
    """Rows a step, over all hosts."""
    feature_lengths: Mapping[str, int]
    """Tokens of each feature, e.g. {'inputs': 512, 'targets': 114}. A decoder-only row holds their sum."""
    vocabulary: str
    """'bytes' (ByT5's), or the path of a SentencePiece model (or of a folder that `t5flan vocabulary` wrote)."""
    extra_ids: int = 100
    """Sentinels appended to a SentencePiece model that has no vocabulary.json beside it."""
    mode_tokens: tuple[str, ...] = ()
    """Tokens such as '[NLU]' that get an id of their own below the sentinels (same case)."""
    format: str = 'encoder_decoder'
    """'encoder_decoder', 'prefix_lm' (decoder-only, inputs see each other) or 'causal_lm'."""
    pack: bool = True
    """Several examples a row; none sees another."""
    split: str = 'train'
    shuffle: bool = True
    """False: each task's examples in their own order, the mixture's order fixed."""
    seed: int = 0
    streams: int | None = None
    """Streams that fill the batch's rows (divides batch_size); None takes the largest divisor up to batch_size // 8."""
    prefetch: int = 2
    """Batches prepared ahead in a thread; 0 prepares them in the training loop."""
    too_long: str = 'trim'
    """Examples longer than the feature lengths: 'trim' or 'drop'. Both are counted and reported."""
    file_tasks: tuple[FileTask, ...] = ()
    text_files: tuple[TextFiles, ...] = ()
    modules: tuple[str, ...] = ()
    """Python modules to import first: they register a user's own SeqIO tasks."""
    concatenate: int = 1
    """Documents of raw text that are joined, in their order, before they are cut into windows that fill the features; 1 cuts
    each by itself. T5 joins 128. No token is lost either way."""
    denoisers: Mapping[str, tuple[Denoiser, ...]] = dataclasses.field(default_factory=dict)
    """Mixtures of denoisers: {'mine': [@r/Denoiser(), …]} makes CORPUS_mine of every corpus. 'ul2' and 'u_palm' are there, and
    may be replaced."""
    blends: tuple[Blend, ...] = ()
    """Mixtures made here; `mixture` may name one."""
    stages: tuple[Stage, ...] = ()
    """What follows `mixture`, each from a step on."""
    mixed_in: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Share of each of these tasks or mixtures in every stage, e.g. {'c4_span_corruption': 0.05} keeps some pretraining."""
    instructions: InstructionConfig = InstructionConfig()
    """How instruction tasks are put into words."""
    natural_instructions: str | None = None
    """Folder of Super-NaturalInstructions (task*.json, and the split lists); None registers none of its tasks."""
    natural: NaturalInstructionsConfig = NaturalInstructionsConfig()
    """Which of them are mixed."""
    cot: str | tuple[str, ...] | None = None
    """Folders or files with rationales (FLAN's .tsv, the CoT Collection's .json); a tuple once made."""
    chat: str | tuple[str, ...] | None = None
    """Files of conversations or instruction rows (.json, .jsonl); a tuple once made."""
    cache: str | None = None
    """A folder that `t5flan cache` wrote: the tasks in it are read from there, the others as always."""
    skip_broken: bool = False
    """Leave out a task that cannot be loaded, and say so, instead of stopping (--skip_broken)."""

    def __post_init__(self) -> None:
        for field in ('cot', 'chat'):
            object.__setattr__(self, field, as_paths(f'DataConfig.{field}', getattr(self, field)))
        for field in ('natural_instructions', 'cache'):
            if getattr(self, field) is not None:
                require_text(f'DataConfig.{field}', getattr(self, field))
        object.__setattr__(self, 'feature_lengths', dict(self.feature_lengths))
        object.__setattr__(self, 'mixed_in', dict(self.mixed_in))
        object.__setattr__(self, 'denoisers', {name: tuple(denoisers) for name, denoisers in self.denoisers.items()})
        for name, denoisers in self.denoisers.items():
            check_denoisers(name, denoisers)
        require_count('DataConfig.concatenate', self.concatenate)
        for field in ('file_tasks', 'text_files', 'modules', 'mode_tokens', 'blends', 'stages'):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        require_text('DataConfig.mixture', self.mixture)
        require_text('DataConfig.vocabulary', self.vocabulary)
        require_text('DataConfig.split', self.split)
        require_count('DataConfig.batch_size', self.batch_size)
        require_count('DataConfig.extra_ids', self.extra_ids, least=0)
        require_count('DataConfig.prefetch', self.prefetch, least=0)
        require_one_of('DataConfig.format', self.format, FORMATS)
        require_one_of('DataConfig.too_long', self.too_long, TOO_LONG)
        for feature in ('inputs', 'targets'):
            if feature not in self.feature_lengths:
                if feature == 'inputs' and self.format == 'causal_lm':
                    continue  # a plain language model has targets only
                raise UserError(
                    f"DataConfig.feature_lengths={self.feature_lengths} has no length for '{feature}'. "
                    "Set DataConfig.feature_lengths = {'inputs': N, 'targets': M} in your .gin."
                )
        for feature, length in self.feature_lengths.items():
            require_count(f"DataConfig.feature_lengths['{feature}']", length)
        self._check_stages()
        if self.streams is not None:
            require_count('DataConfig.streams', self.streams)
            if self.batch_size % self.streams:
                raise UserError(
                    f'DataConfig.streams={self.streams} does not divide DataConfig.batch_size={self.batch_size}. Set '
                    'one of them in your .gin.'
                )

    def _check_stages(self) -> None:
        begins = [0, *(stage.begins for stage in self.stages)]
        for before, stage in zip(begins, self.stages):
            if stage.begins <= before:
                raise UserError(
                    f'Stage.begins={stage.begins} of {stage.mixture!r} must be above {before}, where the stage before begins. '
                    'Set Stage.begins or the order of DataConfig.stages in your .gin.'
                )
        for name, share in self.mixed_in.items():
            require_share(f"DataConfig.mixed_in['{name}']", share)
        if sum(self.mixed_in.values()) >= 1:
            raise UserError(
                f'DataConfig.mixed_in={self.mixed_in} leaves nothing for {self.mixture!r}: its shares must sum to less than 1. '
                'Set DataConfig.mixed_in in your .gin.'
            )

    @property
    def stream_count(self) -> int:
        """Streams that fill a batch: `streams`, or the largest divisor of batch_size that is at most batch_size // 8."""
        if self.streams is not None:
            return self.streams
        most = max(1, self.batch_size // 8)
        return next(n for n in range(most, 0, -1) if self.batch_size % n == 0)
