"""Translation: prompts in both directions, BLEU and chrF as sacrebleu computes them."""

import pytest
import sacrebleu

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, score
from t5flan.tasks.benchmarks import find

PAIRS = [(f'Satz {i}.', f'Sentence {i}.') for i in range(7)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'deu-eng.tsv').write_text(''.join(f'{one}\t{other}\n' for one, other in PAIRS))
    return tmp_path


def test_prompts_in_both_directions(folder):
    benchmark = find('translation')
    assert benchmark.tasks(str(folder)) == ['deu-eng', 'eng-deu']
    first, second = benchmark.questions(str(folder), 'deu-eng')
    assert first.prompt().startswith('German: Satz 0.\nEnglish: Sentence 0.\n\nGerman: Satz 1.')
    assert first.prompt().endswith('English: Sentence 4.\n\nGerman: Satz 5.\nEnglish:')
    assert (second.index, second.target) == (1, 'Sentence 6.')
    [back] = benchmark.questions(str(folder), 'eng-deu', 1)
    assert back.prompt().endswith('English: Sentence 5.\nGerman:') and back.target == 'Satz 5.'


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        (' A cat.\n\nGerman: Hund', 'A cat.'),
        ('A cat. German: Hund', 'A cat.'),
        ('\n\nA cat.', 'A cat.'),
        ('我要去。\n中文', '我要去。'),
        ('', None),
        ('German: x', None),
    ],
)
def test_the_translation_of_a_completion(text, found):
    assert find('translation').extract(text, 'deu-eng') == found


@pytest.mark.parametrize(('task', 'tokenizer'), [('deu-eng', '13a'), ('eng-cmn', 'zh'), ('eng-jpn', 'char')])
def test_metrics_are_those_of_sacrebleu(task, tokenizer):
    given = ['The cat sat on the mat today', '我 今天 不去学校了，因为下雨', '']
    right = ['The cat sat on a mat today', '我今天不去学校了，因为下大雨', 'a dog']
    answers = [Answer(task, i, (one,), other) for i, (one, other) in enumerate(zip(given, right))]
    found = score(find('translation'), answers).tasks[task]
    assert found['bleu'] == sacrebleu.corpus_bleu(given, [right], tokenize=tokenizer).score > 0
    assert found['chrf'] == sacrebleu.corpus_chrf(given, [right]).score
    assert found['no_answer'] == pytest.approx(100 / 3)


def test_bad_files_are_reported_in_one_line(folder):
    path = folder / 'deu-eng.tsv'
    path.write_text('one\ttwo\tthree\n')
    with pytest.raises(UserError, match='line 1: expected a sentence, a tab and its translation'):
        find('translation').questions(str(folder), 'deu-eng')
    path.write_text('one\ttwo\n')
    with pytest.raises(UserError, match='has 1 pairs, expected 5 exemplars and more'):
        find('translation').questions(str(folder), 'eng-deu')
    with pytest.raises(UserError, match='has no fra-eng.tsv'):
        find('translation').questions(str(folder), 'eng-fra')
