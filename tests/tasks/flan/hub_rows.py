"""A record of each data set of the hub in the schema of its card, and the items of the rows that read it."""

import dataclasses

import datasets
from datasets import ClassLabel, List, Value

from t5flan.tasks.flan.sources import source_of
from tests.tasks.flan.table_rows import TABLE_ROWS

_DUORC = {
    'plot_id': '/m/1', 'plot': 'Ann finds a map and sails off.', 'title': 'The Map', 'question_id': 'q',
    'question': 'What does Ann find?', 'answers': ['a map', 'map'], 'no_answer': False,
}  # fmt: skip
_SPANS = {'text': List(Value('string')), 'answer_start': List(Value('int32'))}
_CHOICES = {'text': List(Value('string')), 'label': List(Value('string'))}
_DB = [
    'Company', 'EducationalInstitution', 'Artist', 'Athlete', 'OfficeHolder', 'MeanOfTransportation', 'Building',
    'NaturalPlace', 'Village', 'Animal', 'Plant', 'Album', 'Film', 'WrittenWork',
]  # fmt: skip
_LANGUAGES = ['UNKNOWN_LANGUAGE', 'PYTHON', 'CPP', 'PYTHON3', 'JAVA']
_WIKIHOP = {
    'query': 'place_of_birth ada lovelace', 'supports': ['Ada was born here.', 'Here is London.'], 'id': 'WH_1',
    'candidates': ['london', 'paris'], 'answer': 'london',
}  # fmt: skip
_WIQA = {
    'question_stem': 'suppose there is more rain happens, how will it affect MORE MUD.',
    'question_para_step': ['It rains.', 'The soil gets wet.', 'Mud forms.', ''], 'answer_label': 'more',
    'answer_label_as_choice': 'A', 'choices': {'text': ['more', 'less', 'no effect'], 'label': ['A', 'B', 'C']},
    'metadata_question_type': 'EXOGENOUS_EFFECT', 'metadata_path_len': 2,
}  # fmt: skip

SETS = {
    'UCLNLP/adversarial_qa': (
        {'id': '1', 'title': 'Rome', 'context': 'Rome is old.', 'question': 'What is old?',
         'answers': {'text': ['Rome'], 'answer_start': [0]}, 'metadata': {'split': 'train', 'model_in_the_loop': 'x'}},
        {'answers': _SPANS}),
    'fancyzhx/amazon_polarity': (
        {'label': 1, 'title': 'Great', 'content': 'I like it.'}, {'label': ClassLabel(names=['negative', 'positive'])}),
    'sealuzh/app_reviews': (
        {'package_name': 'a.b', 'review': 'Crashes.', 'date': 'May 1 2016', 'star': 2}, {'star': Value('int8')}),
    'fancyzhx/dbpedia_14': (
        {'label': 5, 'title': 'HMS X', 'content': 'HMS X was a ship.'}, {'label': ClassLabel(names=_DB)}),
    'dataset-org/dream': (
        {'id': 0, 'dialogue_id': '1', 'dialogue': ['W: Hi.', 'M: Hello.', 'W: Bye.'], 'question': 'Who says bye?',
         'choice': ['W', 'M', 'no one'], 'answer': 'W'}, {}),
    'ibm-research/duorc': (_DUORC, {}),
    'facebook/kilt_tasks': (
        {'id': '1', 'input': 'Which is taller?', 'meta': {'left_context': ''},
         'output': [{'answer': 'K2', 'meta': {'score': 0}, 'provenance': []}]},
        {'output': [{'answer': Value('string'), 'meta': {'score': Value('int32')},
                     'provenance': [{'title': Value('string')}]}]}),
    'textmachinelab/quail': (
        {'id': 'f_0', 'context': 'Jo ran home.', 'question': 'Where did Jo run?', 'question_type': 'Factual',
         'answers': ['home', 'away', 'far', 'not enough information'], 'correct_answer_id': 0}, {}),
    'community-datasets/quarel': (
        {'id': '1', 'answer_index': 1, 'logical_forms': ['(a)'], 'logical_form_pretty': 'q',
         'world_literals': {'world1': ['carpet'], 'world2': ['ice']},
         'question': 'Where does a ball roll farther? (A) carpet (B) ice'}, {}),
    'allenai/quartz': (
        {'id': '1', 'question': 'More Sun makes water', 'choices': {'text': ['warmer', 'colder'], 'label': ['A', 'B']},
         'answerKey': 'A', 'para': 'The Sun warms.', 'para_id': 'p', 'para_anno': {'effect_prop': 'heat'}},
        {'choices': _CHOICES}),
    'allenai/sciq': (
        {'question': 'What burns?', 'distractor3': 'sand', 'distractor1': 'water', 'distractor2': 'rock',
         'correct_answer': 'wood', 'support': 'Wood burns well.'}, {}),
    'allenai/quoref': (
        {
            'id': '1', 'question': 'Who?', 'context': 'Jo sings. She is old.', 'title': 'Jo', 'url': 'x',
            'answers': {'text': ['Jo'], 'answer_start': [0]},
        },
        {'answers': _SPANS},
    ),
    'MoE-UNC/wikihop': (_WIKIHOP, {}),
    'microsoft/wiki_qa': (
        {'question_id': 'Q1', 'question': 'how are glacier caves formed?', 'document_title': 'Glacier cave',
         'answer': 'Water runs through ice.', 'label': 1}, {'label': ClassLabel(names=['0', '1'])}),
    'allenai/wiqa': (_WIQA, {'choices': _CHOICES}),
    'google-research-datasets/taskmaster1': (
        {'conversation_id': 'd', 'instruction_id': 'i', 'utterances': [
            {'index': 0, 'speaker': 'USER', 'text': 'A table, please.', 'segments': []},
            {'index': 1, 'speaker': 'ASSISTANT', 'text': 'For how many?', 'segments': []}]},
        {'utterances': [{'index': Value('int32'), 'speaker': Value('string'), 'text': Value('string'),
                         'segments': [{'text': Value('string')}]}]}),
    'deepmind/code_contests': (
        {'name': 'p', 'description': 'Add two numbers.', 'public_tests': {'input': ['1 2'], 'output': ['3']},
         'solutions': {'language': [2, 3, 3], 'solution': ['int main', 'print(1)  # long', 'print(1)']}},
        {'solutions': {'language': List(ClassLabel(names=_LANGUAGES)), 'solution': List(Value('string'))}}),
}  # fmt: skip
"""Name on the hub -> (a record, features that cannot be inferred from it)."""

ITEMS = {
    'adversarial_qa_dbert': {'passage': 'Rome is old.', 'question': 'What is old?', 'title': 'Rome', 'answer': 'Rome'},
    'amazon_polarity': {'text': 'Great\nI like it.', 'answer': 'positive', 'options': ['negative', 'positive']},
    'app_reviews': {'text': 'Crashes.', 'answer': '2', 'options': ['1', '2', '3', '4', '5']},
    'dbpedia_14': {'text': 'HMS X - HMS X was a ship.', 'answer': 'means of transportation'},
    'dbpedia_14_title': {'text': 'HMS X', 'answer': 'means of transportation'},
    'dream': {'passage': 'W: Hi.\nM: Hello.\nW: Bye.', 'answer': 'W', 'options': ['W', 'M', 'no one']},
    'dream_first_turn': {'text': 'M: Hello.\nW: Bye.', 'answer': 'W: Hi.'},
    'dream_last_turn': {'dialogue': 'W: Hi.\nM: Hello.', 'answer': 'W: Bye.'},
    'duorc_self': {'passage': _DUORC['plot'], 'title': 'The Map', 'answer': 'a map'},
    'duorc_self_title': {'text': _DUORC['plot'], 'answer': 'The Map'},
    'kilt_hotpotqa': {'question': 'Which is taller?', 'answer': 'K2'},
    'quail': {'passage': 'Jo ran home.', 'answer': 'home'},
    'quarel': {'answer': 'ice', 'options': ['carpet', 'ice']},
    'quartz': {'passage': 'The Sun warms.', 'answer': 'warmer', 'options': ['warmer', 'colder']},
    'sciq': {'passage': 'Wood burns well.', 'answer': 'wood', 'options': ['rock', 'sand', 'water', 'wood']},
    'sciq_closed_book': {'question': 'What burns?', 'answer': 'wood'},
    'wiki_hop': {'passage': '- Ada was born here.\n- Here is London.', 'answer': 'london',
                 'question': 'What is the "place of birth" of ada lovelace?', 'options': ['london', 'paris']},
    'quoref_title': {'text': 'Jo sings. She is old.', 'answer': 'Jo'},
    'wiki_hop_relation': {'answer': 'place of birth'},
    'wiki_hop_subject': {'answer': 'ada lovelace'},
    'wiki_hop_pair': {'answer': 'ada lovelace, london'},
    'wiki_qa': {'question': 'how are glacier caves formed?', 'answer': 'Water runs through ice.'},
    'wiki_qa_is_right': {'passage': 'Water runs through ice.', 'answer': 'yes', 'options': ['no', 'yes']},
    'wiki_qa_topic_of_pair': {'text': 'how are glacier caves formed?\nWater runs through ice.',
                              'answer': 'Glacier cave'},
    'wiqa_effect': {
        'passage': 'It rains.\nThe soil gets wet.\nMud forms.', 'answer': 'more',
        'options': ['more', 'less', 'no effect'],
    },
    'wiqa_has_effect': {'answer': 'yes', 'options': ['yes', 'no']},
    'wiqa_kind_of_effect': {'answer': 'indirectly on one of its steps'},
    'wiqa_first_step': {'text': 'The soil gets wet.\nMud forms.', 'answer': 'It rains.'},
    'wiqa_last_step': {'text': 'It rains.\nThe soil gets wet.', 'answer': 'Mud forms.'},
    'task_master': {'dialogue': 'A: A table, please.', 'answer': 'For how many?'},
    'dmcc_python': {'description': 'Add two numbers.', 'answer': 'print(1)'},
}  # fmt: skip
"""Row -> what its item has."""


def stand_in(folder, name, count=250, **changes):
    """A row of the table that reads a data set saved in `folder`: `count` records in the schema of the real one."""
    row = TABLE_ROWS[name]
    record, features = SETS[row.hub.partition(',')[0]]
    made = datasets.Dataset.from_list([record | changes] * count)
    made = made.cast(datasets.Features({**made.features, **features}))
    splits = {split.partition('[')[0] for split in row.splits.values()}
    datasets.DatasetDict(dict.fromkeys(splits, made)).save_to_disk(str(folder))
    return dataclasses.replace(row, hub=str(folder))


def records_of(row, split='train'):
    """The records of a split as a task reads them."""
    return source_of(row).records(split)
