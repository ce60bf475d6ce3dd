"""Speed of multiple-choice evaluation in lm-evaluation-harness, in questions per second: t5flan against `hf`.

    python benchmarks/evaluate.py --model=SmolLM2-135M-Instruct        a Hugging Face folder; 16 questions of 4 options
    python benchmarks/evaluate.py --model=FOLDER --options=2 --context=300
    python benchmarks/evaluate.py --model=FOLDER --only=t5flan         without PyTorch

Both get the same requests: a context of about `--context` words for each question, and options of one to six words. It
needs the extras `eval` and `convert` (torch, transformers, accelerate). The two alternate in one run; quote the ratio
of their medians, since seconds vary with the machine. Their log-likelihoods are compared too.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

WORDS = [start + end for start in 'bdfglmnprst' for end in ('and', 'ing', 'ost', 'ell', 'one')]

Run = Callable[[], list[tuple[float, bool]]]


def make_requests(questions: int, options: int, context: int) -> list:
    """lm-eval's requests: each option of each question after its context."""
    from lm_eval.api.instance import Instance

    random = np.random.default_rng(0)
    text = lambda count: ' '.join(random.choice(WORDS, count))
    found = []
    for doc in range(questions):
        prompt = f'Question: {text(int(context * random.uniform(0.5, 1.5)))}?\nAnswer:'
        for option in range(options):
            arguments = (prompt, f' {text(int(random.integers(1, 7)))}')
            found.append(Instance('loglikelihood', {}, arguments, option, ('speed', doc, 1)))
    return found


def our_run(args: argparse.Namespace, requests: list) -> Run:
    """A function that scores the requests with t5flan."""
    from t5flan.evaluation.harness import HarnessModel

    model = HarnessModel(args.model, batch_size=args.batch_size)
    return lambda: model.loglikelihood(requests, disable_tqdm=True)


def hf_run(args: argparse.Namespace, requests: list) -> Run:
    """The same with lm-eval's Hugging Face backend."""
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = HFLM(pretrained=args.model, dtype='float32', device='cpu', batch_size=args.batch_size)
    return lambda: model.loglikelihood(requests, disable_tqdm=True)


def main() -> None:
    """Prints one line of JSON: medians over `--repeats` runs, after a first run that compiles."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', required=True, help='a Hugging Face folder')
    parser.add_argument('--questions', type=int, default=16)
    parser.add_argument('--options', type=int, default=4)
    parser.add_argument('--context', type=int, default=100, help='words of a context, on average')
    parser.add_argument('--batch_size', type=int, default=8)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--only', choices=['t5flan', 'hf'])
    args = parser.parse_args()
    requests = make_requests(args.questions, args.options, args.context)
    runs = {
        name: make(args, requests) for name, make in (('t5flan', our_run), ('hf', hf_run)) if args.only in (None, name)
    }
    first_s, answers = {}, {}
    for name, run in runs.items():
        start = time.perf_counter()
        answers[name] = [value for value, _ in run()]
        first_s[name] = time.perf_counter() - start
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    medians = {name: statistics.median(values) for name, values in wall.items()}
    result = {
        'setting': f'{args.questions} questions of {args.options} options, batch size {args.batch_size}',
        'questions_per_s': {name: round(args.questions / median, 3) for name, median in medians.items()},
        'median_s': medians,
        'median_cpu_s': {name: statistics.median(values) for name, values in cpu.items()},
        'first_s': first_s,
    }
    if args.only is None:
        result['ratio_of_medians'] = medians['t5flan'] / medians['hf']
        result['ratio_of_cpu'] = result['median_cpu_s']['t5flan'] / result['median_cpu_s']['hf']
        result['largest_difference'] = float(np.max(np.abs(np.subtract(answers['t5flan'], answers['hf']))))
    print(json.dumps(result))


if __name__ == '__main__':
    main()
