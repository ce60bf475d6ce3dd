"""The interface of a benchmark: prompts, votes, means and categories."""

import pytest

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, Benchmark, Question, find_folder, score


class Toy(Benchmark):
    """The answer is the last word."""

    name = 'toy'
    metric = 'accuracy'
    categories = {'pair': ('a', 'b'), 'merged': (('a', 'b'), 'c'), 'absent': ('z',)}
    known_tasks = ('a', 'b', 'c', 'd')

    def tasks(self, folder):
        return list(self.known_tasks)

    def questions(self, folder, task, limit=None):
        return []

    def extract(self, completion, task):
        return completion.split()[-1] if completion.split() else None


def answer(task, index, text, target='x'):
    return Answer(task, index, (text,), target)


def test_exemplars_leave_a_prompt_from_the_front():
    question = Question('t', 0, ('1', '2', '3'), '?', 'x', 'h')
    assert [question.prompt(dropped) for dropped in range(4)] == ['h123?', 'h23?', 'h3?', 'h?']


def test_every_task_counts_alike():
    answers = [answer('a', 0, 'x'), answer('a', 1, 'y'), answer('b', 0, 'is x'), answer('c', 0, '')]
    scores = score(Toy(), answers)
    assert scores.tasks['a'] == {'examples': 2, 'accuracy': 50, 'no_answer': 0}
    assert scores.tasks['c'] == {'examples': 1, 'accuracy': 0, 'no_answer': 100}
    assert {name: (one['tasks'], one['accuracy']) for name, one in scores.averages.items()} == {
        'all': (3, 50), 'pair': (2, 75), 'merged': (2, 37.5),
    }  # fmt: skip
    assert scores.missing == ('d',) and scores.judged['a', 1]['accuracy'] == 0


def test_any_of_several_targets_is_right():
    assert Toy().judge(answer('a', 0, 'y', ['x', 'y']))['accuracy'] == 1
    assert Toy().judge(answer('a', 0, 'z', ['x', 'y']))['accuracy'] == 0


@pytest.mark.parametrize(
    ('samples', 'accuracy', 'no_answer'),
    [(('x', 'y', 'x'), 1, 0), (('y', 'x'), 0, 0), (('', '', 'x'), 1, 0), (('', ''), 0, 1)],
)
def test_samples_vote_and_those_without_an_answer_abstain(samples, accuracy, no_answer):
    found = Toy().judge(Answer('a', 0, samples, 'x'))
    assert (found['accuracy'], found['no_answer']) == (accuracy, no_answer)


def test_nothing_to_score_is_an_error():
    with pytest.raises(UserError, match='no predictions of toy'):
        score(Toy(), [])


def test_a_release_is_found_in_the_folder_or_below(tmp_path):
    (tmp_path / 'toy').mkdir()
    (tmp_path / 'toy' / 'a.json').touch()
    for folder in (tmp_path, tmp_path / 'toy'):
        assert find_folder(str(folder), ['other', 'toy'], ['*.json'], 'toy') == tmp_path / 'toy'
    with pytest.raises(UserError, match=r'has no \*.csv or toy/\*.csv, the files of toy. Set --benchmark_dir'):
        find_folder(str(tmp_path), ['toy'], ['*.csv'], 'toy')
    with pytest.raises(UserError, match='no such folder'):
        find_folder(str(tmp_path / 'toy' / 'a.json'), [], ['*'], 'toy')
