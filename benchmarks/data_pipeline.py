"""Tokens a second from raw text to packed batches, on one thread.

    python benchmarks/data_pipeline.py --mixture=stdlib_docs_span_corruption --vocabulary=F.model

Prints medians over `--rounds` rounds of `--batches` batches: tokens (not padding) a
second of CPU and of wall clock, microseconds an example, and the share of tokens that are not padding. `--vocabulary=train`
trains one of 8,000 ids on the standard library's documentation first.
"""

import argparse
import statistics
import time

from t5flan.tasks import register_all
from t5flan.tasks.text import stdlib_documents

from t5flan.data.config import FORMATS, DataConfig
from t5flan.data.pipeline import TrainPipeline
from t5flan.data.vocabularies import load_vocabulary, train_sentencepiece


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
    arguments = parser.parse_args()

    register_all()
    if arguments.vocabulary == 'train':
        vocabulary = train_sentencepiece(stdlib_documents(), 8000)
    else:
        vocabulary = load_vocabulary(arguments.vocabulary)
    lengths = {'inputs': arguments.inputs, 'targets': arguments.targets}
    config = DataConfig(
        arguments.mixture, arguments.batch_size, lengths, arguments.vocabulary, format=arguments.format, prefetch=0
    )
    with TrainPipeline(config, vocabulary) as pipeline:
        next(pipeline)  # opens the sources
        cpu, wall, per_example = [], [], []
        for _ in range(arguments.rounds):
            examples = _examples(pipeline)
            started, started_cpu = time.perf_counter(), time.process_time()
            tokens = sum(_tokens(next(pipeline)[0]) for _ in range(arguments.batches))
            seconds, seconds_cpu = (time.perf_counter() - started, time.process_time() - started_cpu)
            cpu.append(tokens / seconds_cpu)
            wall.append(tokens / seconds)
            per_example.append(1e6 * seconds_cpu / (_examples(pipeline) - examples))
        efficiency = pipeline.report()['packing_efficiency']
    print(f'{arguments.mixture}, {vocabulary.vocab_size} ids, {arguments.batch_size} x {lengths}, {arguments.format}')
    print(f'tokens/s of CPU   {statistics.median(cpu):12,.0f}')
    print(f'tokens/s of wall  {statistics.median(wall):12,.0f}')
    print(f'us of CPU/example {statistics.median(per_example):12,.1f}')
    print(f'not padding       {efficiency:12.1%}')


def _examples(pipeline: TrainPipeline) -> int:
    return sum(task['examples'] for task in pipeline.report()['tasks'].values())


def _tokens(batch: dict) -> int:
    return sum(int((batch[name] > 0).sum()) for name in ('encoder_segment_ids', 'decoder_segment_ids') if name in batch)


if __name__ == '__main__':
    main()
