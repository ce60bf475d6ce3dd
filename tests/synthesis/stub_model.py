"""A stand-in for a language model whose answers are a function of the prompt, the row and the seed.

As a script, it runs a method in child processes that are killed at random moments, until one of them finishes:

    python -m tests.synthesis.stub_model METHOD OUTPUT KILLS SEED
"""

import os
import random
import signal
import sys
import time
from typing import Any

import numpy as np

from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import Generation
from t5flan.synthesis import loop
from t5flan.synthesis.backtranslate import Backtranslate
from t5flan.synthesis.evol_instruct import EvolInstruct
from t5flan.synthesis.seeds import read_seeds
from t5flan.synthesis.self_instruct import SelfInstruct

VOCABULARY = ByteVocabulary()
SAMPLING = Decoding(temperature=0.7, batch_size=4, max_new_tokens=64)
VERBS = ['Describe', 'Name', 'Compare', 'Explain', 'Translate', 'List', 'Rewrite', 'Invent', 'Sort', 'Count']
THINGS = [
    'rivers',
    'bridges',
    'gardens',
    'violins',
    'proverbs',
    'planets',
    'recipes',
    'storms',
    'markets',
    'letters',
    'tunnels',
    'islands',
]
PLACES = ['in winter', 'for a child', 'of your town', 'from memory', 'without adjectives', 'in the year 1900', 'at sea']
TEXTS = [
    (f'rows.jsonl row {i}', f'The {THINGS[i % 12]} near house {i} are {i + 3} years old and well kept.')
    for i in range(20)
]


def sentence(random: random.Random) -> str:
    return f'{random.choice(VERBS)} {random.randint(2, 99)} {random.choice(THINGS)} {random.choice(PLACES)}.'


class Stub:
    """Writes lists of tasks, labels, inputs and answers."""

    folder, step, max_new_tokens, vocabulary, format = 'runs/stub', None, 64, VOCABULARY, 'causal_lm'

    def __init__(self, pause: float = 0.0) -> None:
        self.calls, self._pause = 0, pause

    def in_format(self, chosen: str) -> 'Stub':
        return self

    def input_ids(self, text: str) -> list[int]:
        return VOCABULARY.encode(text)

    def say(self, prompt: str, random: random.Random) -> str:
        """The continuation of a prompt."""
        if prompt.endswith('9.'):
            return ' ' + '\n'.join(f'{n}. {sentence(random)}' for n in range(9, 13)).removeprefix('9. ')
        if prompt.endswith('Classification:'):
            return random.choice([' Yes', ' No'])
        if prompt.endswith('Label:'):
            return f' {random.choice(["yes", "no"])}\nInput: {sentence(random)}'
        if prompt.endswith('Input:'):
            return random.choice([' none', f' {sentence(random)}'])
        if prompt.endswith(('New task:', 'Instruction:')):
            return sentence(random)
        return random.choice(['', f'It is {random.randint(0, 999)} as far as I know.'])

    def generate_ids(self, inputs: Any, *, decoding: Decoding, rows: Any) -> list[list[Generation]]:
        self.calls += 1
        time.sleep(self._pause)
        made = []
        for ids, row in zip(inputs, rows, strict=True):
            prompt = VOCABULARY.decode(ids)
            drawn = random.Random(f'{prompt}/{row}/{decoding.seed}')
            tokens = np.array([*VOCABULARY.encode(self.say(prompt, drawn)), VOCABULARY.eos_id], np.int32)
            made.append([Generation(tokens, np.zeros(len(tokens), np.float32), drawn.random() < 0.95, 0.0)])
        return made

    def score(self, inputs: Any, targets: Any, batch_size: int) -> list[float]:
        self.calls += 1
        return [random.Random(one + other).gauss(0, 1) for one, other in zip(inputs, targets, strict=True)]


def method(name: str, decoding: Decoding = SAMPLING) -> loop.Method:
    if name == 'backtranslate':
        return Backtranslate(TEXTS, read_seeds(), decoding)
    return {'self_instruct': SelfInstruct, 'evol_instruct': EvolInstruct}[name](read_seeds(), decoding)


def run(name: str, output: str, pause: float = 0.0, **settings: Any) -> dict[str, Any]:
    """Runs a method with the stub, whatever the checkpoint."""
    loop.load = lambda *_: Stub(pause)  # type: ignore[assignment]
    given = {'count': None if name == 'backtranslate' else 30, 'decoding': SAMPLING} | settings
    return loop.synthesize(method(name), loop.Job('runs/stub', output, **given))


def run_and_kill(name: str, output: str, kills: int, seed: int) -> int:
    """Starts a run and kills it at a random moment, `kills` times; then lets one finish. Returns the kills that hit."""
    moments, hit = random.Random(seed), 0
    for number in range(kills + 1):
        child = os.fork()
        if not child:
            with open(os.devnull, 'w') as nowhere:
                sys.stdout = sys.stderr = nowhere
                run(name, output, pause=0.005)
            os._exit(0)
        if number < kills:
            time.sleep(moments.uniform(0.0, 0.08))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        hit += os.WIFSIGNALED(status)
    return hit


if __name__ == '__main__':
    print(run_and_kill(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
