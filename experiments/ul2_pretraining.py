"""Measures what UL2's mixture of denoisers brings: two small models, pretrained in three ways on as many tokens.

    python experiments/ul2_pretraining.py --workdir=runs/ul2_pretraining --text='books/*.txt' --held_out=wikitext.txt \
        --vocabulary=spiece.model --picture=docs/ul2.png

An encoder-decoder with the architecture of T5 1.1 and a decoder with Llama's are trained with

    ul2      the seven denoisers of UL2 (arXiv:2205.05131), with mode tokens; the decoder as prefix LM
    spans    T5's span corruption; the decoder as prefix LM
    causal   causal language modelling; the encoder of the encoder-decoder then reads nothing

on the same number of tokens, inputs and targets together without padding. Each model is evaluated on the held-out
text: on the examples of every denoiser, with mode tokens if it knows them, and on continuing a text (prefix LM, S with
half of the text as target). A causal model gets the beginning as its own output, the others as input. The loss is in
nats per target token, end of sequence included. The last checkpoint also continues text of the training set.

A stopped run continues when started again. Prints a table and writes results.json and, with --picture, the curves.
Every training is a t5flan command, which is printed first.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.configurables import parse
from t5flan.data.batches.pipeline import TrainPipeline, eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.files import write_json
from t5flan.language_model import LanguageModel, load
from t5flan.tasks import register_all
from t5flan.training.metric_writer import read_metrics

from runs import is_trained, markdown, run

ARCHITECTURES = ('encoder_decoder', 'decoder_only')
OBJECTIVES = ('ul2', 'spans', 'causal')
MIXTURES = {'ul2': 'text_ul2', 'spans': 'text_t5', 'causal': 'text_causal'}
# Rows per batch and tokens per row: about 4,096 tokens per step.
LENGTHS = {
    'ul2': (4, {'inputs': 512, 'targets': 512}),
    'spans': (7, {'inputs': 512, 'targets': 114}),
    'causal': (8, {'inputs': 4, 'targets': 512}),
}
EVALUATED_LENGTHS = {'inputs': 512, 'targets': 512}
POINTS = 6  # evaluated checkpoints per run

MODELS = {
    'encoder_decoder': """
include 'models/t5_1_1_small.gin'
ModelConfig.num_encoder_layers = 3
ModelConfig.num_decoder_layers = 3
""",
    'decoder_only': """
include 'models/tiny_decoder.gin'
ModelConfig.vocab_size = 32128
ModelConfig.num_kv_heads = 2
ModelConfig.head_dim = 64
ModelConfig.num_decoder_layers = 6
""",
}
RUN = """
include 'runs/ul2.gin'
ModelConfig.dtype = 'float32'
ModelConfig.emb_dim = 128
ModelConfig.num_heads = 2
ModelConfig.mlp_dim = 384
MIXTURE = '{mixture}'
FEATURE_LENGTHS = {lengths}
BATCH_SIZE = {rows}
STEPS = {steps}
LEARNING_RATE = 1e-2
WARMUP_STEPS = {warmup}
OptimizerConfig.schedule = 'linear'
OptimizerConfig.final_ratio = 0.1
CheckpointConfig.every = {every}
CheckpointConfig.keep = 100
EvaluationConfig.every = 0
RunConfig.log_every = 20
"""
DATA = """
VOCABULARY = '{vocabulary}'
TextFiles.name = 'text'
TextFiles.train = '{text}'
TextFiles.validation = '{held_out}'
DataConfig.text_files = [@TextFiles()]
DataConfig.format = '{format}'
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default='runs/ul2_pretraining')
    parser.add_argument('--text', required=True, help='.txt or .jsonl files to train on')
    parser.add_argument('--held_out', required=True, help='the same, to evaluate on')
    parser.add_argument('--vocabulary', required=True, help="T5's SentencePiece model")
    parser.add_argument('--architectures', default=','.join(ARCHITECTURES))
    parser.add_argument('--tokens', type=int, default=1_200_000, help='inputs and targets of each run')
    parser.add_argument('--examples', type=int, default=64, help='evaluated per denoiser')
    parser.add_argument('--picture', help='a .png of the curves')
    arguments = parser.parse_args()
    root = Path(arguments.workdir)
    root.mkdir(parents=True, exist_ok=True)

    report = root / 'results.json'
    results: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    for architecture in arguments.architectures.split(','):
        for objective in OBJECTIVES:
            name = f'{architecture}_{objective}'
            tokens = pretrain(root, name, architecture, objective, arguments)
            steps = steps_of(root / name)
            results[name] = {str(step * tokens): evaluate(root, name, step, objective, arguments) for step in steps}
            write_json(report, results)
            print(table(results), flush=True)
    if arguments.picture:
        draw(root, results, arguments.picture)


def gin_of(root: Path, name: str, architecture: str, objective: str, steps: int, arguments: argparse.Namespace) -> Path:
    """The run's .gin file."""
    rows, lengths = LENGTHS[objective]
    format = 'causal_lm' if objective == 'causal' else 'prefix_lm'
    format = architecture if architecture == 'encoder_decoder' else format
    run_gin = RUN.format(
        mixture=MIXTURES[objective],
        lengths=lengths,
        rows=rows,
        steps=steps,
        warmup=max(1, steps // 20),
        every=max(1, steps // POINTS),
    )
    gin = root / f'{name}.gin'
    gin.write_text(MODELS[architecture] + run_gin + DATA.format(format=format, **vars(arguments)))
    return gin


def pretrain(root: Path, name: str, architecture: str, objective: str, arguments: argparse.Namespace) -> float:
    """Trains one model; returns the tokens per step."""
    tokens = tokens_of_step(gin_of(root, name, architecture, objective, 1, arguments))
    steps = round(arguments.tokens / tokens)
    gin = gin_of(root, name, architecture, objective, steps, arguments)
    if not is_trained(root / name, steps):
        run('train', f'--workdir={root / name}', f'--gin_file={gin}')
    return tokens


def tokens_of_step(gin: Path, batches: int = 40) -> float:
    """Average tokens of a batch, inputs and targets, without padding."""
    config = parse([str(gin)]).read(DataConfig)
    register_all(config)
    counted = 0
    with TrainPipeline(config, load_vocabulary(config.vocabulary, config.extra_ids, config.mode_tokens)) as pipeline:
        for _, (batch, _) in zip(range(batches), pipeline):
            counted += sum(np.count_nonzero(x) for name, x in batch.items() if name.endswith('segment_ids'))
    return counted / batches


def steps_of(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdecimal())


# -- Evaluation --------------------------------------------------------------------------------------------------------


def evaluate(root: Path, name: str, step: int, objective: str, arguments: argparse.Namespace) -> dict[str, float]:
    """{'prefix LM' or denoiser: nats per target token} of a checkpoint; only 'prefix LM' for all but the last."""
    report = root / name / f'evaluated_{step}.json'
    found = json.loads(report.read_text()) if report.exists() else {}
    config = parse([str(root / f'{name}.gin')]).read(DataConfig)
    plain = [dataclasses.replace(one, mode_token='') for one in config.denoisers['ul2']]
    half = dataclasses.replace(config.denoisers['ul2'][-1], noise_density=0.5)
    added = {'plain': plain, 'half': [half], 'half_plain': [dataclasses.replace(half, mode_token='')]}
    config = dataclasses.replace(
        config, denoisers={**config.denoisers, **added}, feature_lengths=EVALUATED_LENGTHS, split='validation'
    )
    register_all(config)
    knows_modes = objective == 'ul2'
    prefix_lm = f'text_half{"" if knows_modes else "_plain"}_s'
    tasks = {'prefix LM': prefix_lm}
    if step == max(steps_of(root / name)):
        tasks['prefix LM, training text'] = prefix_lm
        names = [task.name for task in find_mixture('text_ul2' if knows_modes else 'text_plain').tasks]
        tasks |= {name.removeprefix('text_ul2_').removeprefix('text_plain_'): name for name in names}
    if set(tasks) - set(found):
        model = load(root / name, step)
        for what in set(tasks) - set(found):
            one = dataclasses.replace(config, split='train') if 'training' in what else config
            found[what] = nats(model, one, tasks[what], objective, arguments.examples)
        write_json(report, found)
    return {what: found[what] for what in tasks}


def nats(model: LanguageModel, config: DataConfig, task: str, objective: str, examples: int) -> float:
    """The loss of a task's first examples, in nats per target token."""
    found = eval_examples(config, model.vocabulary, task, examples)
    inputs, targets = ([np.asarray(one[side]).tolist() for one in found] for side in ('inputs', 'targets'))
    counted = sum(map(len, targets))
    if objective != 'causal':
        return -sum(model.score_ids(inputs, targets, batch_size=8)) / counted
    nothing = [[model.vocabulary.eos_id]] * len(found)
    starts = [ids[:-1] for ids in inputs]  # without end of sequence: the text continues
    whole = model.score_ids(nothing, [a + b for a, b in zip(starts, targets)], batch_size=8)
    return -(sum(whole) - sum(model.score_ids(nothing, starts, batch_size=8))) / counted


# -- Results -----------------------------------------------------------------------------------------------------------


def last_of(results: dict[str, Any], name: str) -> dict[str, float]:
    return results[name][max(results[name], key=float)]


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each model, with the losses of its last checkpoint."""
    columns = list(dict.fromkeys(column for name in results for column in last_of(results, name)))
    last = {name: last_of(results, name) for name in results}
    cells = lambda found: [f'{found[one]:.2f}' if one in found else '' for one in columns]
    return markdown(['model, objective', *columns], [[name, *cells(found)] for name, found in last.items()])


def draw(root: Path, results: dict[str, Any], path: str) -> None:
    """Plots the losses, in nats per target token, over tokens; one column per architecture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout='constrained')
    for column, architecture in zip(figure.subplots(2, 2, sharex='col', sharey='row').T, ARCHITECTURES):
        for objective in OBJECTIVES:
            curve = results[f'{architecture}_{objective}']
            tokens = [float(tokens) / 1e6 for tokens in curve]
            rows = [row for row in read_metrics(root / f'{architecture}_{objective}') if 'loss' in row]
            seen = [row['step'] / rows[-1]['step'] * tokens[-1] for row in rows]
            column[0].plot(seen, [row['loss'] for row in rows], label=objective)
            column[1].plot(tokens, [one['prefix LM'] for one in curve.values()], 'o-', label=objective)
        column[0].set_title(architecture.replace('_', '-'), loc='left')
        column[1].set_xlabel('million tokens, inputs and targets')
    figure.axes[0].set_ylabel('training loss')
    figure.axes[2].set_ylabel('prefix LM, held out')
    figure.axes[0].legend(frameon=False)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    main()
