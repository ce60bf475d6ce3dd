r"""Programs: HumanEval (Chen et al. 2021, arXiv:2107.03374) and MBPP (Austin et al. 2021, arXiv:2108.07732).

HumanEval reads HumanEval.jsonl or HumanEval.jsonl.gz and asks with the release's prompt, 0-shot. MBPP reads mbpp.jsonl;
the exemplars are its tasks 2, 3 and 4 in the paper's layout, and tasks 11 to 510 are asked, as its README says.

The rule that reads a completion:

1. The program is the content of the first ``` block, if there is one.
2. HumanEval: a text that defines the function itself replaces the prompt's definition, what stands before it remains.
   Any other text continues the prompt, up to the first line that ends the function ("def ", "class ", "if ", "print",
   "#", "@" at its start). If its first line lost its indentation, as SentencePiece strips it, it is indented.
3. MBPP: the program ends at "[DONE]".

Generation ends there too. HumanEval has no such text: what the Codex paper stops at ("\ndef", "\nclass" and others) is
where an instruction-tuned model starts the function anew. With a pretrained model, set --stop to these strings.

Of n samples a question, pass@k is estimated for k = 1, 10 and 100 up to n. Programs run as scoring/code_execution.py
describes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.data.records.fields import find_field, require_field, require_texts
from t5flan.data.records.rows import read_rows
from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, Benchmark, Metrics, Question, find_folder
from t5flan.scoring.code_execution import pass_at_k, run_programs

_FENCE = re.compile(r'```(?:[Pp]ython\d?)?[ \t]*\n(.*?)(?:\n```|$)', re.DOTALL)
_FUNCTION_END = re.compile(r'\n(?=def |class |if |print|#|@|```|<)')
_DONE = '[DONE]'
_KS = (1, 10, 100)
_SETTING = '--benchmark_dir'


class _Programs(Benchmark):
    metric = 'pass@1'
    max_new_tokens = 512

    def program(self, completion: str, target: Mapping[str, Any]) -> str:
        """The program that has to run to its end, with its tests."""
        raise NotImplementedError

    def extract(self, completion: str, task: str) -> str | None:
        """The program's text."""
        fenced = _FENCE.search(completion)
        return fenced.group(1) if fenced else completion

    def judge(self, answer: Answer) -> Metrics:
        """pass@k of one question."""
        return self.judge_all([answer])[0]

    def judge_all(self, answers: Sequence[Answer]) -> list[Metrics]:
        """pass@k of every question; all programs run side by side."""
        programs = [self.program(one, _checked(answer, self.name)) for answer in answers for one in answer.samples]
        passed = iter(run_programs(programs))
        judged = []
        for answer in answers:
            count, right = len(answer.samples), sum(next(passed) for _ in answer.samples)
            judged.append({f'pass@{k}': pass_at_k(count, right, k) for k in _KS if k <= count})
        return judged


class HumanEval(_Programs):
    """HumanEval."""

    name = 'human_eval'
    known_tasks = ('human_eval',)

    def tasks(self, folder: str) -> list[str]:
        """['human_eval'], if its file is there."""
        return [self.name] if _find(folder, 'human_eval', 'HumanEval.jsonl*', self.name) else []

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The problems, in the order of the file."""
        questions: list[Question] = []
        for row in read_rows(str(_find(folder, 'human_eval', 'HumanEval.jsonl*', self.name))):
            names = ('prompt', 'test', 'entry_point')
            target = {name: require_field(row.value, name, row.where, _SETTING) for name in names}
            questions.append(Question(task, len(questions), (), target['prompt'], target))
        return questions[:limit]

    def program(self, completion: str, target: Mapping[str, Any]) -> str:
        """The prompt, its continuation, and the tests."""
        text, prompt, name = self.extract(completion, self.name) or '', target['prompt'], target['entry_point']
        definition = re.compile(rf'^def {re.escape(name)}\b', re.MULTILINE)
        if definition.search(text):
            before = definition.split(prompt, maxsplit=1)[0]
            body = f'{before}\n{text}'
        else:
            body = prompt + _FUNCTION_END.split(f'\n{_indented(text)}', maxsplit=1)[0].removeprefix('\n')
        return f'{body}\n{target["test"]}\ncheck({name})\n'


class BasicProgramming(_Programs):
    """MBPP."""

    name = 'mbpp'
    shots = 3
    known_tasks = ('mbpp',)

    def tasks(self, folder: str) -> list[str]:
        """['mbpp'], if its file is there."""
        return [self.name] if _find(folder, 'mbpp', 'mbpp.jsonl', self.name) else []

    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The problems 11 to 510."""
        path = _find(folder, 'mbpp', 'mbpp.jsonl', self.name)
        problems: dict[int, dict[str, Any]] = {}
        for row in read_rows(str(path)):
            number = find_field(row.value, 'task_id', row.where, _SETTING)
            found = {name: require_field(row.value, name, row.where, _SETTING) for name in ('text', 'code')}
            tests = require_texts(row.value.get('test_list'), 'test_list', row.where, _SETTING)
            problems[number] = {**found, 'tests': tests, 'setup': row.value.get('test_setup_code') or ''}
        if missing := [number for number in (2, 3, 4) if number not in problems]:
            raise UserError(f'{path} lacks the exemplars, task_id {missing[0]}. Get the original file.')
        shown = [problems[number] for number in (2, 3, 4)]
        exemplars = tuple(f'{_worded(one)}{one["code"].strip()}\n{_DONE}\n\n' for one in shown)
        asked = [problems[number] for number in sorted(problems) if 11 <= number <= 510]
        target = lambda one: {'tests': one['tests'], 'setup': one['setup']}
        return [Question(task, i, exemplars, _worded(one), target(one)) for i, one in enumerate(asked[:limit])]

    def stop_strings(self, task: str) -> tuple[str, ...]:
        """The end of a program."""
        return (_DONE,)

    def program(self, completion: str, target: Mapping[str, Any]) -> str:
        """The text up to [DONE], and the tests."""
        text = (self.extract(completion.partition(_DONE)[0], self.name) or '').replace('\r', '')
        return '\n'.join([text, target['setup'].replace('\r', ''), *target['tests']])


def _indented(text: str) -> str:
    """The body of a function with the indentation of its first line, unless another definition follows the function."""
    first, _, rest = text.strip('\n').partition('\n')
    is_other = first.startswith(('def ', 'class ')) and not rest.lstrip('\n').startswith(' ' * 8)
    return text if not first or first[0].isspace() or is_other else f'    {first}\n{rest}'


def _worded(problem: Mapping[str, Any]) -> str:
    tests = '\n'.join(problem['tests'])
    return (
        f'You are an expert Python programmer, and here is your task: {problem["text"].strip()} '
        f'Your code should pass these tests:\n\n{tests}\n[BEGIN]\n'
    )


def _checked(answer: Answer, name: str) -> Mapping[str, Any]:
    """The target of an answer, which a file of predictions may have lost."""
    expected = {'prompt', 'test', 'entry_point'} if name == 'human_eval' else {'tests', 'setup'}
    if not isinstance(answer.target, Mapping) or not expected <= set(answer.target):
        raise UserError(
            f'the target of question {answer.index} of {name} is not an object with {", ".join(sorted(expected))}. '
            'Keep the targets that `t5flan evaluate` writes.'
        )
    return answer.target


def _find(folder: str, name: str, file: str, benchmark: str) -> Path:
    root = find_folder(folder, [name, f'{name}/data', 'data'], [file], benchmark)
    return sorted(root.glob(file))[0]
