"""Metrics equal values computed by hand and have the signatures SeqIO expects."""

import doctest
import inspect
import sys

import pytest

from t5flan.errors import UserError
from t5flan.scoring import metrics


def test_worked_examples():
    results = doctest.testmod(metrics)
    assert results.attempted > 1 and results.failed == 0


def test_exact_match_keeps_case_and_punctuation():
    result = metrics.exact_match(['A b', 'x', 'y.', ['no', 'No']], ['A  b ', 'X', 'y', 'No'])
    assert result == {'exact_match': 50.0}


def test_squad_uses_the_best_answer():
    result = metrics.squad([['Paris'], ['a red fox', 'dog']], ['paris.', 'red wolf'])
    assert result == {'em': 50.0, 'f1': pytest.approx(100 * (1 + 0.5) / 2)}


@pytest.mark.parametrize(
    'target, prediction, f1',
    [('', '', 1.0), ('cat', '', 0.0), ('the', 'a', 1.0), ('a b c', 'c b', 1.0), ('cat cat', 'cat', 2 / 3)],
)
def test_token_f1(target, prediction, f1):
    assert metrics.token_f1(target, prediction) == pytest.approx(f1)


def test_number_match_compares_values():
    result = metrics.number_match(['18', '1000', '7', '3'], ['it is $18.00', '1,000', 'none', '4'])
    assert result == {'number_match': 50.0}


def test_log_likelihood_is_the_mean():
    assert metrics.log_likelihood(['a', 'b'], [-1.0, -3.0]) == {'log_likelihood': -2.0}


def test_accuracy_of_labels():
    assert metrics.accuracy([1, 0, 2], [1, 0, 1]) == {'accuracy': pytest.approx(200 / 3)}


@pytest.mark.parametrize(
    'metric', [metrics.exact_match, metrics.accuracy, metrics.squad, metrics.number_match, metrics.log_likelihood]
)
def test_no_examples_score_zero_and_unequal_lengths_fail(metric):
    assert set(metric([], []).values()) == {0.0}
    with pytest.raises(ValueError):
        metric(['a'], [])
    assert tuple(inspect.signature(metric).parameters) in (('targets', 'predictions'), ('targets', 'scores'))


def test_rouge_and_bleu_are_those_of_the_libraries():
    sacrebleu = pytest.importorskip('sacrebleu', reason='the extra metrics is not installed')
    scorer = pytest.importorskip('rouge_score.rouge_scorer', reason='the extra metrics is not installed')
    targets = ['the cat sat on the mat', ['a big dog barks', 'the dog is barking loudly'], 'x']
    texts = ['the cat sits on a mat', 'the dog is barking', 'y']
    rouge = scorer.RougeScorer(['rougeL'], use_stemmer=True)
    best = [
        max(rouge.score(one, text)['rougeL'].fmeasure for one in ([target] if isinstance(target, str) else target))
        for target, text in zip(targets, texts)
    ]
    assert metrics.rouge_l(targets, texts) == {'rouge_l': pytest.approx(100 * sum(best) / 3)}
    references = [[targets[0], targets[1][0], 'x'], [None, targets[1][1], None]]
    assert metrics.bleu(targets, texts) == {'bleu': pytest.approx(sacrebleu.corpus_bleu(texts, references).score)}
    assert metrics.bleu(targets, [targets[0], targets[1][1], 'x'])['bleu'] == pytest.approx(100)
    assert metrics.f1(targets[:1], texts[:1]) == {'f1': metrics.squad(targets[:1], texts[:1])['f1']}
    assert metrics.rouge_l([], []) == {'rouge_l': 0} and metrics.bleu([], []) == {'bleu': 0}


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sacrebleu', None)
    with pytest.raises(UserError, match=r"the metric bleu needs sacrebleu: pip install 't5flan\[metrics\]'") as error:
        metrics.bleu(['a'], ['a'])
    assert '\n' not in str(error.value)
