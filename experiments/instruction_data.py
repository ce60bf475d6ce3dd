"""The data of `instruction_tuning.py`: what is trained on, what is held out, and how held-out questions are asked.

`prepare` reads the public files and writes a folder that the later stages need alone:

    natural_instructions/tasks/TASK.json    the tasks that are trained on
    cot/SET_train.tsv                       rows of the sets with rationales that are trained on, if there are any
    chat/FILE                               conversations, as they are
    evaluation/KIND.TASK.jsonl              {"inputs": the whole prompt, "targets": right answers, "bare": the question}
    prepared.json                           what was chosen; its presence means that the folder is complete

Whole tasks of Natural Instructions are held out by category: each category that has a task on the official test list.
STRATEGYQA and QASC are held out of the sets with rationales. The questions of GSM8K are those of its test set; if its
training file is among the sets with rationales, they are new questions of a known task.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.files import write_json, write_whole

HELD_OUT_SETS = ('strategyqa', 'qasc')
TRIGGER = "Let's think step by step."
"""Asks for a rationale: the first of InstructionConfig.triggers, of which training draws one for each example."""
PREPARED = 'prepared.json'
SEED = 0

Row = dict[str, Any]


def prepare(
    folder: Path, sources: Mapping[str, str | None], sizes: Mapping[str, int], count: Callable[[str], int]
) -> Row:
    """Writes the folder described above; does nothing if it is complete.

    Args:
        folder: where to write.
        sources: 'natural_instructions', 'cot' (left out: no sets with rationales) and 'chat' (folders), 'gsm8k' (a
            .jsonl file, or None).
        sizes: 'tasks' (held-out tasks of Natural Instructions), 'rows' (questions of each), 'reasoning_rows' (questions
            of each reasoning set), 'cot_rows' (training rows of each set with rationales), 'prompt_tokens' (the
            longest prompt).
        count: the number of tokens of a text.

    Returns:
        The content of prepared.json: sources, sizes, 'held_out' (category -> tasks), 'trained' (names), and
        'evaluations' (name -> {'kind', 'task', 'questions', 'left_out'}).

    Raises:
        UserError: the folder was prepared from other sources or with other sizes, or a source is missing.
    """
    chosen = {'sources': dict(sources), 'sizes': dict(sizes)}
    if (folder / PREPARED).exists():
        found = json.loads((folder / PREPARED).read_text('utf-8'))
        if found['sizes'] != chosen['sizes']:
            given = ', '.join(f'{name}={value}' for name, value in sizes.items() if found['sizes'].get(name) != value)
            raise UserError(f'{folder} was prepared with other sizes than {given}. Set another --workdir.')
        return found
    if missing := [name for name, path in sources.items() if name != 'gsm8k' and not path]:
        raise UserError(f'{folder} is not prepared. Set {", ".join(f"--{name}" for name in missing)}.')
    natural = Path(str(sources['natural_instructions']))
    cot = Path(str(sources['cot'])) if 'cot' in sources else None
    held_out, trained = split_by_category(read_categories(natural), read_test_list(natural), sizes['tasks'])
    (folder / 'natural_instructions' / 'tasks').mkdir(parents=True, exist_ok=True)
    for name in trained:
        shutil.copyfile(natural / 'tasks' / f'{name}.json', folder / 'natural_instructions' / 'tasks' / f'{name}.json')
    sets = [] if cot is None else write_cot(cot, folder / 'cot', sizes['cot_rows'])
    chats = copy_chat(Path(str(sources['chat'])), folder / 'chat')
    evaluations: dict[str, Row] = {}
    for tasks in held_out.values():
        for task in tasks:
            content = json.loads((natural / 'tasks' / f'{task}.json').read_text('utf-8'))
            fits = lambda text: count(text) <= sizes['prompt_tokens']
            made, left_out = instruction_prompts(content, sizes['rows'], fits, f'{SEED} {task}')
            for kind, rows in made.items():
                evaluations[f'{kind}.{task}'] = {'kind': kind, 'task': task, 'left_out': left_out, 'rows': rows}
    for name, items in reasoning_items(cot, sources.get('gsm8k')).items():
        items = random.Random(f'{SEED} {name}').sample(items, min(sizes['reasoning_rows'], len(items)))
        for kind, rows in reasoning_prompts(items).items():
            evaluations[f'{kind}.{name}'] = {'kind': kind, 'task': name, 'left_out': 0, 'rows': rows}
    for name, one in evaluations.items():
        write_rows(folder / 'evaluation' / f'{name}.jsonl', one['rows'])
    described = {name: {**one, 'rows': len(one['rows'])} for name, one in evaluations.items()}
    result = chosen | {'held_out': held_out, 'trained': [*trained, *sets, *chats], 'evaluations': described}
    write_json(folder / PREPARED, result)
    return result


# -- Held out by category ----------------------------------------------------------------------------------------------


def read_categories(natural: Path) -> dict[str, str]:
    """Task of Natural Instructions -> its first category."""
    found = {}
    for path in sorted((natural / 'tasks').glob('task*.json')):
        found[path.stem] = str((json.loads(path.read_text('utf-8')).get('Categories') or [''])[0])
    if not found:
        raise UserError(f'{natural} has no tasks/task*.json. Set --natural_instructions to the release.')
    return found


def read_test_list(natural: Path) -> list[str]:
    """The names on the official test list."""
    return (natural / 'splits' / 'default' / 'test_tasks.txt').read_text('utf-8').split()


def split_by_category(
    categories: Mapping[str, str], test_list: Sequence[str], most: int
) -> tuple[dict[str, list[str]], list[str]]:
    """Held-out tasks by category, and the tasks to train on.

    No task of a category with a task on the test list is trained on. Those on the list are evaluated, at most `most`:
    one of each category after the other, so that few tasks still are of many categories.
    """
    tested = set(test_list) & set(categories)
    held_out = sorted({categories[task] for task in tested})
    waiting = {category: [task for task in sorted(tested) if categories[task] == category] for category in held_out}
    chosen: dict[str, list[str]] = {category: [] for category in held_out}
    while any(waiting.values()) and sum(map(len, chosen.values())) < most:
        for category, tasks in waiting.items():
            if tasks and sum(map(len, chosen.values())) < most:
                chosen[category].append(tasks.pop(0))
    trained = [task for task in categories if categories[task] not in held_out]
    return {category: tasks for category, tasks in chosen.items() if tasks}, trained


# -- Training files ----------------------------------------------------------------------------------------------------


def write_cot(source: Path, folder: Path, most: int) -> list[str]:
    """Copies at most `most` rows of each set with rationales that is not held out; returns the files' names."""
    paths = [path for path in sorted(source.glob('*_train.tsv')) if set_name(path) not in HELD_OUT_SETS]
    if not paths:
        raise UserError(f'{source} has no *_train.tsv to train on. Set --cot to the folder of FLAN.')
    for path in paths:
        lines = [line for line in path.read_text('utf-8').split('\n') if line.strip()]
        if len(lines) > most:
            lines = random.Random(f'{SEED} {path.name}').sample(lines, most)
        write_whole(folder / path.name, '\n'.join(lines) + '\n')
    return [path.name for path in paths]


def set_name(path: Path) -> str:
    """'qasc_train.tsv' -> 'qasc'."""
    return path.stem.removesuffix('_train')


def copy_chat(source: Path, folder: Path) -> list[str]:
    """Copies the files of conversations, and not those of plain text; returns their names."""
    paths = [path for path in sorted(source.glob('*.json*')) if not path.name.startswith('c4_')]
    if not paths:
        raise UserError(f'{source} has no .json or .jsonl files. Set --chat to a folder of conversations.')
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copyfile(path, folder / path.name)
    return [path.name for path in paths]


# -- Held-out questions ------------------------------------------------------------------------------------------------


def instruction_prompts(
    content: Mapping[str, Any], most: int, fits: Callable[[str], bool], seed: str
) -> tuple[dict[str, list[Row]], int]:
    """Zero-shot and two-shot prompts of the same instances of a task; the exemplars are other instances.

    Args:
        content: a task's file.
        most: the number of questions, fewer if the task has fewer.
        fits: whether a prompt is short enough; other instances are taken for those whose prompts are not.

    Returns:
        {'zero_shot': rows, 'two_shot': rows}, and the number of instances that were too long.
    """
    definition = content['Definition']
    definition = (definition if isinstance(definition, str) else ' '.join(definition)).strip()
    instances = {one['input'].strip(): one for one in content['Instances'] if any(map(str.strip, one['output']))}
    order = list(instances)
    rng = random.Random(seed)
    rng.shuffle(order)
    asked, left_out = order[: 2 * len(order) // 3], 0
    others = order[len(asked) :]
    if len(others) < 2:
        raise UserError('a held-out task has fewer than 4 different instances, expected more. Set --tasks.')
    made: dict[str, list[Row]] = {'zero_shot': [], 'two_shot': []}
    for text in asked:
        if len(made['zero_shot']) == most:
            break
        draws = (rng.sample(others, 2) for _ in range(8))
        shown = ([(one, next(filter(str.strip, instances[one]['output']))) for one in draw] for draw in draws)
        two_shot = next(filter(fits, (ask(definition, exemplars, text) for exemplars in shown)), None)
        if two_shot is None:
            left_out += 1
            continue
        targets = [output for output in instances[text]['output'] if output.strip()]
        for kind, prompt in (('zero_shot', ask(definition, [], text)), ('two_shot', two_shot)):
            made[kind].append({'inputs': prompt, 'targets': targets, 'bare': text})
    return made, left_out


def ask(definition: str, exemplars: Sequence[tuple[str, str]], text: str) -> str:
    """A prompt: the definition, exemplars with their outputs, and the input."""
    shown = ''.join(f'Input: {given}\nOutput: {output.strip()}\n\n' for given, output in exemplars)
    return f'{definition}\n\n{shown}Input: {text}\nOutput:'


def reasoning_items(cot: Path | None, gsm8k: str | None) -> dict[str, list[Row]]:
    """Set -> its questions {'question', 'answer'}: those of HELD_OUT_SETS, and the test questions of GSM8K."""
    found: dict[str, list[Row]] = {}
    paths = {} if cot is None else {name: cot / f'{name}_train.tsv' for name in HELD_OUT_SETS}
    for name, path in paths.items():
        if not path.is_file():
            raise UserError(f'{path}: no such file. Set --cot to the folder of FLAN.')
        rows = [line.split('\t') for line in path.read_text('utf-8').split('\n') if line.strip()]
        found[name] = [{'question': row[0].replace('\\n', '\n').strip(), 'answer': row[1].strip()} for row in rows]
    if gsm8k:
        lines = [json.loads(line) for line in Path(gsm8k).read_text('utf-8').split('\n') if line.strip()]
        ends = lambda answer: answer.rpartition('####')[2].strip()
        found['gsm8k'] = [{'question': one['question'].strip(), 'answer': ends(one['answer'])} for one in lines]
    return found


def reasoning_prompts(items: Sequence[Row]) -> dict[str, list[Row]]:
    """The same questions without and with the sentence that asks for a rationale."""
    made: dict[str, list[Row]] = {'direct': [], 'rationale': []}
    for item in items:
        for kind, prompt in (('direct', item['question']), ('rationale', f'{item["question"]}\n{TRIGGER}')):
            made[kind].append({'inputs': prompt, 'targets': [item['answer']], 'bare': item['question']})
    return made


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes JSON Lines."""
    write_whole(path, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))


def read_rows(path: Path) -> list[Row]:
    """Reads JSON Lines."""
    return [json.loads(line) for line in path.read_text('utf-8').split('\n') if line.strip()]
