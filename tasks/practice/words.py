"""The words of all practice skills: few, so that a very small model can learn them well."""

ANIMALS = ('dog', 'cat', 'cow', 'pig', 'hen', 'fox', 'bee', 'ant', 'owl', 'bat')
COLOURS = ('red', 'blue', 'green', 'black', 'white', 'gold', 'pink', 'grey')
FOOD = ('apple', 'pear', 'plum', 'fig', 'lime', 'bean', 'corn', 'nut')
NATURE = ('sun', 'moon', 'star', 'rain', 'snow', 'wind', 'sky', 'sea')
THINGS = ('cup', 'pan', 'fork', 'bowl', 'box', 'key', 'pen', 'hat', 'desk', 'lamp', 'door', 'wall', 'roof', 'bed')
VEHICLES = ('bus', 'car', 'boat', 'van', 'tram', 'bike')
BODY = ('hand', 'foot', 'nose', 'ear', 'arm', 'leg')
WORDS = ANIMALS + COLOURS + FOOD + NATURE + THINGS + VEHICLES + BODY
SHORT_WORDS = tuple(word for word in WORDS if len(word) == 3)

NAMES = ('Tom', 'Anna', 'Ben', 'Mia', 'Sam', 'Eva', 'Leo', 'Zoe')
OBJECTS = ('apples', 'pears', 'pens', 'cups', 'keys', 'hats', 'nuts', 'books')
LETTERS = tuple('abdegiklmnoprstu')

DAYS = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday')
MONTHS = (
    ('January', 31), ('February', 28), ('March', 31), ('April', 30), ('May', 31), ('June', 30),
    ('July', 31), ('August', 31), ('September', 30), ('October', 31), ('November', 30), ('December', 31),
)  # fmt: skip

# Made-up nouns of three classes and made-up adjectives of two sentiments, which only training examples teach.
MADE_UP = {
    'animal': ('dax', 'wug', 'blick', 'gorvo', 'tulver', 'mip', 'snarp', 'yomp', 'kez', 'fuzzock'),
    'plant': ('fep', 'loma', 'zill', 'brell', 'quon', 'vint', 'hask', 'pell', 'orbin', 'trimsy'),
    'tool': ('zup', 'crand', 'nup', 'dreet', 'jort', 'spelk', 'wamble', 'rull', 'tizer', 'klem'),
}
SENTIMENTS = {
    'positive': ('lumby', 'zanty', 'fravid', 'shuly', 'morvy', 'glinty', 'pavish', 'deelo', 'sunty', 'harvy'),
    'negative': ('grusty', 'vekky', 'bloffy', 'nurgic', 'skeld', 'trobby', 'wexish', 'dorvy', 'mulky', 'yarvid'),
}
CLASS_OF = {word: name for name, words in MADE_UP.items() for word in words}
