"""Measures the data pipeline on one thread: tokens per second from raw text to packed batches, startup time and memory.

    python benchmarks/data_pipeline.py --mixture=stdlib_docs_span_corruption --vocabulary=F.model
    python benchmarks/data_pipeline.py --text='books/*.txt' --mixture=text_t5 --concatenate=128 --vocabulary=F.model
        --beside_t5
    python benchmarks/data_pipeline.py --mixture=natural_instructions --natural_instructions=DIR --tasks=1500 --alone=90
        --warm=300 --batches=60 --rounds=5
    python benchmarks/data_pipeline.py --mixing=1500 --warm=300 --batches=120 --rounds=5 --vocabulary=F.model

Prints medians over `--rounds` rounds of `--batches` batches: tokens (without padding) per second of CPU and of wall
clock, microseconds per example, and the share of tokens that are not padding. At the end it prints how many TPU v5p
chips one such core can feed, each training T5 1.1 XL at half of its peak.

- `--vocabulary=train` first trains one of 8,000 ids on the standard library's documentation.
- `--tasks=N` makes N tasks by repeating the files of the folder.
- `--alone=N` also runs N of the mixture's tasks by themselves and prints the cost of mixing: its CPU time per example
  over theirs. The tasks are evenly spaced in the mixture's order by rate, so that they stand for its examples.
- `--mixing=N` measures what many tasks cost: the CPU time per example of N tasks over that of eight with the same
  content, in turns in one process. The tasks repeat eight files of `--natural_instructions`, or of the standard
  library's documentation. A cycle in which every task prepares examples takes about N / 3 batches of 64 rows.
- `--text` makes the corpus 'text' of local files; `text_t5` is its span corruption, `text_ul2` UL2's mixture.
- `--beside_t5` also does the work of `text_t5` with the t5 package's span corruption under SeqIO (pip install t5), in
  alternating rounds.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5flan.config.memory import peak_resident_memory
from t5flan.configurables import parse
from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.config import FORMATS, DataConfig
from t5flan.data.corpus_config import Denoiser, TextFiles
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.training import train_sentencepiece
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.models.config import ModelConfig
from t5flan.tasks import register_all
from t5flan.tasks.text import stdlib_documents
from t5flan.training.throughput import device_peak_tflops, model_flops

FEW = 8
"""Tasks that `--mixing` compares with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mixture', default='stdlib_docs_span_corruption')
    parser.add_argument('--vocabulary', default='train')
    parser.add_argument('--format', default='encoder_decoder', choices=FORMATS)
    parser.add_argument('--batch_size', type=int, default=64)
    parser.add_argument('--inputs', type=int, default=512)
    parser.add_argument('--targets', type=int, default=114)
    parser.add_argument('--batches', type=int, default=10)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument(
        '--warm',
        type=int,
        default=1,
        help='batches before measuring; a mixture of many tasks prepares examples ahead in the first hundreds',
    )
    parser.add_argument('--natural_instructions', help='a folder of Super-NaturalInstructions')
    parser.add_argument('--text', help="a path or glob of .txt or .jsonl files: the corpus 'text'")
    parser.add_argument('--concatenate', type=int, default=1, help='documents to join before they are cut')
    parser.add_argument('--beside_t5', action='store_true', help='compare text_t5 with the t5 package; needs a .model')
    parser.add_argument('--cot', action='append', default=[], help='a file or folder with rationales; may be repeated')
    parser.add_argument('--chat', action='append', default=[], help='a file of conversations; may be repeated')
    parser.add_argument('--tasks', type=int, help='number of tasks to make from the files of --natural_instructions')
    parser.add_argument('--alone', type=int, default=0, help='number of tasks of the mixture to run by themselves')
    parser.add_argument('--mixing', type=int, help='number of tasks to compare with eight of the same content')
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if arguments.mixing:
            measure_mixing(arguments, Path(folder))
            return
        if arguments.tasks:
            repeat_files(task_files(arguments.natural_instructions), Path(folder), arguments.tasks)
            arguments.natural_instructions = folder
        measure(arguments)


def task_files(folder: str) -> list[Path]:
    """The files of a folder of Super-NaturalInstructions."""
    inside = Path(folder, 'tasks') if Path(folder, 'tasks').is_dir() else Path(folder)
    return sorted(path.resolve() for path in inside.glob('*.json'))


def repeat_files(files: Sequence[Path], folder: Path, count: int) -> None:
    """Makes `count` files in `folder`: links to `files` under other names."""
    for number in range(count):
        file = files[number % len(files)]
        (folder / f'task{number:04}_of_{count}_{file.stem}.json').symlink_to(file)


def write_files(folder: Path) -> list[Path]:
    """Writes eight tasks of Super-NaturalInstructions' form, made of the standard library's documentation."""
    texts = stdlib_documents()
    made = []
    for number in range(FEW):
        mine = texts[number::FEW]
        examples = [{'input': text[:300], 'output': text[-60:], 'explanation': ''} for text in mine[:3]]
        instances = [{'id': str(i), 'input': text[:800], 'output': [text[-60:]]} for i, text in enumerate(mine[3:1003])]
        fields = {'Definition': [mine[0][:300]], 'Positive Examples': examples, 'Negative Examples': []}
        made.append(folder / f'task{number}_documentation.json')
        made[-1].write_text(json.dumps(fields | {'Instances': instances}))
    return made


def open_vocabulary(name: str) -> Vocabulary:
    """The vocabulary at a path, or one of 8,000 ids that is trained now."""
    if name == 'train':
        return train_sentencepiece(stdlib_documents(), 8000)
    described = Path(name).with_suffix('.json').is_file() or Path(name).is_dir()
    return load_vocabulary(name, mode_tokens=() if described else ('[NLU]', '[NLG]', '[S2S]'))


def data_config(arguments: argparse.Namespace, vocabulary: Vocabulary) -> DataConfig:
    """The settings that the flags give."""
    return DataConfig(
        arguments.mixture,
        arguments.batch_size,
        {'inputs': arguments.inputs, 'targets': arguments.targets},
        arguments.vocabulary,
        format=arguments.format,
        prefetch=0,
        natural_instructions=arguments.natural_instructions,
        cot=arguments.cot,
        chat=arguments.chat,
        mode_tokens=vocabulary.mode_tokens,
        text_files=(TextFiles('text', arguments.text),) if arguments.text else (),
        concatenate=arguments.concatenate,
        denoisers={'t5': (Denoiser('r', 'R', 3.0, 0.15),)},
    )


def measure_mixing(arguments: argparse.Namespace, folder: Path) -> None:
    """Prints the CPU time per example of many tasks and of a few with the same content, measured in turns."""
    vocabulary = open_vocabulary(arguments.vocabulary)
    given = task_files(arguments.natural_instructions) if arguments.natural_instructions else write_files(folder)
    files = given[:: max(1, len(given) // FEW)][:FEW]
    pipelines: dict[int, TrainPipeline] = {}
    for count in (len(files), arguments.mixing):
        inside = folder / str(count)
        inside.mkdir()
        repeat_files(files, inside, count)
        config = dataclasses.replace(
            data_config(arguments, vocabulary), mixture='natural_instructions', natural_instructions=str(inside)
        )
        register_all(config)
        pipelines[count] = TrainPipeline(config, vocabulary)
        for _ in range(arguments.warm):
            next(pipelines[count])
    one_round = argparse.Namespace(batches=arguments.batches, rounds=1)
    found: dict[int, list[float]] = {count: [] for count in pipelines}
    for _ in range(arguments.rounds):
        for count, pipeline in pipelines.items():
            found[count].append(rates(pipeline, one_round)['example'])
    for count, values in found.items():
        print(f'us of CPU/example {statistics.median(values):12,.1f} of {count:,} tasks')
    ratio = statistics.median(many / few for few, many in zip(*found.values(), strict=True))
    memory = peak_resident_memory() / 2**30
    print(f'cost of mixing    {ratio:12.2f} x')
    print(f'peak memory       {memory:12.2f} GiB')


def measure(arguments: argparse.Namespace) -> None:
    vocabulary = open_vocabulary(arguments.vocabulary)
    config = data_config(arguments, vocabulary)
    started = time.perf_counter()
    register_all(config)
    with TrainPipeline(config, vocabulary) as pipeline:
        next(pipeline)  # opens the sources
        first = time.perf_counter() - started
        for _ in range(arguments.warm - 1):
            next(pipeline)
        theirs = T5Package(config, arguments) if arguments.beside_t5 else None
        found = rates(pipeline, arguments, theirs)
        names = sorted(pipeline.rates, key=pipeline.rates.get)
        shares = [pipeline.rates[name] for name in names]
        efficiency = pipeline.report()['packing_efficiency']
    memory = peak_resident_memory() / 2**30
    shape = f'{arguments.batch_size} x {dict(config.feature_lengths)}, {arguments.format}'
    print(f'{arguments.mixture}, {len(names):,} tasks, {vocabulary.vocab_size} ids, {shape}')
    print(f'first batch after {first:12,.1f} s')
    print(f'tokens/s of CPU   {found["cpu"]:12,.0f}')
    print(f'tokens/s of wall  {found["wall"]:12,.0f}')
    print(f'us of CPU/example {found["example"]:12,.1f}')
    print(f'not padding       {efficiency:12.1%}')
    print(f'peak memory       {memory:12.2f} GiB')
    chips = found['cpu'] / tokens_per_second_of_a_chip(arguments)
    print(f'v5p chips fed     {chips:12.1f} by one core, T5 1.1 XL at 50 % of the peak')
    if theirs:
        theirs.close()
        print(f'tokens/s of CPU   {found["theirs"]:12,.0f} by t5 {theirs.version} under SeqIO')
        print(f'ours : theirs     {found["ratio"]:12.1f} x the tokens per second of CPU')
    if arguments.alone:
        chosen = evenly_spaced(names, shares, arguments.alone)
        alone = statistics.mean(run_alone(name, config, vocabulary, arguments) for name in chosen)
        print(f'us of CPU/example {alone:12,.1f} of {arguments.alone} of its tasks, each by itself')
        print(f'cost of mixing    {found["example"] / alone:12.2f} x')


def tokens_per_second_of_a_chip(arguments: argparse.Namespace) -> float:
    """Input and target tokens per second on which a v5p chip trains T5 1.1 XL at half of its 459 TFLOP/s."""
    model = parse(['models/t5_1_1_xl.gin']).read(ModelConfig)
    shapes = {'encoder_input_tokens': (1, arguments.inputs), 'decoder_target_tokens': (1, arguments.targets)}
    rows_per_second = 0.5 * device_peak_tflops('TPU v5') * 1e12 / model_flops(model, shapes)
    return rows_per_second * (arguments.inputs + arguments.targets)


def evenly_spaced(names: list[str], shares: list[float], count: int) -> list[str]:
    """The tasks in the middle of each of `count` equal parts of all examples."""
    chosen, passed = [], 0.0
    for name, share in zip(names, shares, strict=True):
        passed += share
        while len(chosen) < count and passed >= (len(chosen) + 0.5) / count:
            chosen.append(name)
    return chosen


def run_alone(name: str, config: DataConfig, vocabulary: Vocabulary, arguments: argparse.Namespace) -> float:
    """Microseconds of CPU per example of one task."""
    with TrainPipeline(dataclasses.replace(config, mixture=name), vocabulary) as pipeline:
        next(pipeline)
        return rates(pipeline, argparse.Namespace(batches=4, rounds=3))['example']


class T5Package:
    """The same texts through the t5 package's span corruption and SeqIO's tokenizer, packing and batches.

    Runs in another process: tf.data works ahead in threads, whose CPU time must not count as ours.
    """

    def __init__(self, config: DataConfig, arguments: argparse.Namespace) -> None:
        self.version = importlib.metadata.version('t5')
        texts = [record['text'] for record in find_mixture(config.mixture).tasks[0].source.records('train')]
        spawn = multiprocessing.get_context('spawn')
        self._pipe, other = spawn.Pipe()
        spawn.Process(
            target=run_t5,
            daemon=True,
            args=(other, texts, arguments.vocabulary, config.feature_lengths, arguments.batch_size),
        ).start()
        other.close()  # so that `recv` ends when the process does
        self._receive()

    def _receive(self) -> float:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit('--beside_t5: the process that runs the t5 package ended; its error is above') from None

    def rate(self, batches: int) -> float:
        """Tokens per second of CPU."""
        self._pipe.send(batches)
        return self._receive()

    def close(self) -> None:
        self._pipe.send(0)


def run_t5(pipe: Any, texts: list[str], vocabulary_file: str, lengths: dict[str, int], batch_size: int) -> None:
    """For each number of batches received, makes them and sends the tokens per second of CPU."""
    import seqio
    import tensorflow as tf
    from t5.data.preprocessors import span_corruption

    feature = seqio.Feature(seqio.SentencePieceVocabulary(vocabulary_file, extra_ids=100), add_eos=True)
    seqio.TaskRegistry.add(
        't5_package',
        output_features={'inputs': feature, 'targets': feature},
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices({'targets': texts}), ['train']
        ),
        preprocessors=[
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            span_corruption,
            seqio.preprocessors.append_eos_after_trim,
        ],
    )
    dataset = seqio.get_dataset(
        't5_package',
        lengths,
        dataset_split='train',
        shuffle=True,
        seed=0,
        num_epochs=None,
        feature_converter=seqio.EncDecFeatureConverter(pack=True),
    )
    made = dataset.batch(batch_size, drop_remainder=True).as_numpy_iterator()
    batches = 30  # warm up; the result is discarded
    while batches:
        started = time.process_time()
        tokens = sum(_tokens(next(made)) for _ in range(batches))
        before = None
        while before is None or time.process_time() - before > 0.01:  # until the threads have refilled their buffers
            before = time.process_time()
            time.sleep(0.2)
        pipe.send(tokens / (time.process_time() - started))
        batches = pipe.recv()


def rates(pipeline: TrainPipeline, arguments: argparse.Namespace, theirs: T5Package | None = None) -> dict[str, float]:
    """Medians of tokens per second of CPU and wall clock, of microseconds per example, and of the ratio to `theirs`."""
    cpu, wall, per_example, beside = [], [], [], []
    for _ in range(arguments.rounds):
        examples = _examples(pipeline)
        started, started_cpu = time.perf_counter(), time.process_time()
        tokens = sum(_tokens(next(pipeline)[0]) for _ in range(arguments.batches))
        seconds, seconds_cpu = time.perf_counter() - started, time.process_time() - started_cpu
        cpu.append(tokens / seconds_cpu)
        wall.append(tokens / seconds)
        per_example.append(1e6 * seconds_cpu / (_examples(pipeline) - examples))
        beside += [theirs.rate(arguments.batches)] if theirs else []
    found = {'cpu': cpu, 'wall': wall, 'example': per_example}
    if beside:
        found |= {'theirs': beside, 'ratio': [a / b for a, b in zip(cpu, beside)]}
    return {name: statistics.median(values) for name, values in found.items()}


def _examples(pipeline: TrainPipeline) -> int:
    return sum(task['examples'] for task in pipeline.report()['tasks'].values())


def _tokens(batch: dict) -> int:
    return sum(int((batch[name] > 0).sum()) for name in ('encoder_segment_ids', 'decoder_segment_ids') if name in batch)


if __name__ == '__main__':
    main()
