"""t5flan/processes/gathering.py: each input is answered once, by one process; tests/attacks has several real ones."""

import jax
import pytest

from t5flan.processes import gathering


def test_one_process_gathers_its_own_values():
    assert gathering.gather({'a': [1, None]}) == [{'a': [1, None]}] and gathering.is_leader()
    assert gathering.load_together(lambda: 'model') == 'model' and gathering.load_together(lambda: None) is None
    assert gathering.divide(lambda places: [10 * i for i in places], [3, 1, 2]) == [0, 10, 20]
    assert gathering.divide(lambda places: pytest.fail('nothing to do'), []) == []


@pytest.mark.parametrize('count, lengths', [(2, [5, 9, 1, 7, 7]), (3, [1, 2]), (4, list(range(13)))])
def test_inputs_are_divided_evenly_by_their_lengths(monkeypatch, count, lengths):
    shares, found = {}, []
    monkeypatch.setattr(jax, 'process_count', lambda: count)

    class Gathered(Exception):
        pass

    def collect(value):
        shares[jax.process_index()] = value
        raise Gathered

    def run(index):
        monkeypatch.setattr(jax, 'process_index', lambda: index)
        return gathering.divide(lambda places: [f'answer {i}' for i in places], lengths)

    monkeypatch.setattr(gathering, 'gather', collect)
    for index in range(count):
        with pytest.raises(Gathered):
            run(index)
    monkeypatch.setattr(gathering, 'gather', lambda value: [shares[index] for index in range(count)])
    for index in range(count):
        found.append(run(index))
    assert found == [[f'answer {i}' for i in range(len(lengths))]] * count
    sizes = [sum(lengths[i] for i in places) for places, _ in shares.values()]
    assert max(sizes) - min(sizes) <= max(lengths)
    assert sorted(i for places, _ in shares.values() for i in places) == list(range(len(lengths)))
