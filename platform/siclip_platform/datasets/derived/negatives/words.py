"""The word lists that ship: families of words that exclude each other, and words by their part in a sentence.

A family consists of groups of synonyms. A word is replaced by a word of another group of its family, so a caption
with "grey" never becomes one with "gray". In families of two groups the words of both stand in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

Group = tuple[str, ...]
Family = tuple[Group, ...]


def _groups(text: str) -> Family:
    """``a/b c`` → ((a, b), (c,)); an underscore stands for a space."""
    return tuple(tuple(word.replace("_", " ") for word in group.split("/")) for group in text.split())


COLOURS = (
    _groups(
        "red/crimson/scarlet/maroon green/lime/olive blue/navy/azure yellow/golden/gold orange purple/violet"
        " pink/magenta brown/tan/beige black white grey/gray/silver cyan/turquoise/teal"
    ),
)
NUMBERS = (
    _groups("zero/0 one/1 two/2 three/3 four/4 five/5 six/6 seven/7 eight/8 nine/9 ten/10 eleven/11 twelve/12"),
)
SIZES = tuple(
    map(
        _groups,
        (
            "small/little/tiny/miniature big/large/huge/giant",
            "smaller bigger/larger",
            "smallest biggest/largest",
            "short tall",
            "short long",
            "shorter taller/longer",
            "narrow wide",
            "thin/slim thick/fat",
            "shallow deep",
        ),
    )
)
DIRECTIONS = tuple(
    map(
        _groups,
        (
            "left right",
            "above/over below/under/beneath/underneath",
            "up down",
            "upward/upwards downward/downwards",
            "top bottom",
            "upper lower",
            "behind in_front_of",
            "inside outside",
            "into out_of",
            "toward/towards away_from",
            "north south",
            "east west",
            "northern southern",
            "eastern western",
            "forward backward",
            "before after",
            "clockwise counterclockwise",
            "horizontal vertical",
        ),
    )
)
ANTONYMS = tuple(
    map(
        _groups,
        (
            "open/opened closed/shut",
            "old/ancient new/modern",
            "old/elderly young",
            "hot cold",
            "warm cool",
            "wet dry",
            "dark bright/light",
            "light heavy",
            "full empty",
            "clean dirty",
            "happy/smiling sad/crying",
            "sunny cloudy/rainy",
            "day night",
            "sunrise sunset",
            "summer winter",
            "indoor outdoor",
            "indoors outdoors",
            "male female",
            "filled/solid outlined/hollow",
            "round/circular square",
            "smooth rough",
            "straight curved",
            "soft hard",
            "fast slow",
            "quiet loud",
            "raw cooked",
            "sitting/seated standing",
            "sits/sat stands/stood",
            "awake asleep",
            "wooden metal/metallic",
            "striped plain",
            "on off",
            "with without",
            "first last",
            "more fewer/less",
        ),
    )
)
NOUNS = tuple(
    map(
        _groups,
        (
            # animals
            "dog/puppy cat/kitten horse/pony cow/bull sheep/lamb goat pig elephant lion tiger bear giraffe zebra"
            " monkey rabbit/bunny mouse fox wolf deer squirrel hamster kangaroo camel panda donkey frog turtle"
            " snake lizard crocodile whale dolphin shark crab spider butterfly bee/wasp ant fly",
            "duck chicken/hen goose swan owl eagle parrot penguin pigeon seagull crow peacock",
            # people
            "man/guy/gentleman woman/lady boy girl baby/toddler",
            "father mother brother sister son daughter grandfather grandmother uncle aunt",
            "king queen prince princess",
            "doctor nurse teacher soldier farmer chef pilot firefighter policeman artist singer dancer waiter sailor",
            # what they wear
            "hat/cap helmet scarf tie shirt/blouse jacket coat sweater dress skirt suit vest apron",
            "shoe boot sandal sock glove belt watch necklace ring bracelet crown umbrella backpack handbag/purse",
            # vehicles
            "car/automobile bus truck/lorry van taxi/cab ambulance tractor train tram motorcycle/motorbike"
            " bicycle/bike scooter skateboard airplane/plane/aeroplane/aircraft helicopter rocket boat/ship canoe",
            # food and drink
            "apple banana orange lemon grape strawberry cherry peach pear pineapple watermelon mango",
            "carrot tomato potato onion broccoli cucumber pepper mushroom corn lettuce pumpkin",
            "pizza hamburger/burger sandwich cake/cupcake cookie/biscuit donut/doughnut bread pasta/spaghetti rice"
            " salad soup steak egg cheese pie",
            "coffee tea milk juice wine beer water",
            # at home
            "table/desk chair/stool sofa/couch bed bench shelf/bookshelf cabinet/cupboard wardrobe lamp mirror clock",
            "cup/mug glass bottle bowl plate fork knife spoon pan kettle jar vase",
            "kitchen bathroom bedroom office classroom garage hallway",
            "laptop/computer phone/telephone television/tv camera keyboard printer radio tablet",
            "refrigerator/fridge oven microwave toaster dishwasher",
            "book newspaper magazine letter notebook envelope",
            "pen/pencil brush scissors hammer screwdriver saw key",
            # places and nature
            "house/cottage church castle tower skyscraper barn tent bridge stadium lighthouse",
            "beach/shore forest/woods mountain desert river lake field/meadow island valley waterfall",
            "street/road airport station/railway harbor/harbour park garden farm zoo museum restaurant",
            "tree flower bush/shrub grass cactus",
            "rose tulip sunflower daisy lily orchid",
            "sun moon star cloud rainbow",
            "rain snow fog",
            # play
            "football/soccer basketball baseball tennis golf hockey volleyball",
            "guitar piano violin drum trumpet flute",
            "kite balloon ball frisbee doll robot",
            # shapes and signs
            "circle square triangle rectangle star heart diamond hexagon arrow cross",
        ),
    )
)
FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "colour": COLOURS,
    "number": NUMBERS,
    "size": SIZES,
    "direction": DIRECTIONS,
    "antonym": ANTONYMS,
    "noun": NOUNS,
}
"""By the kind of the false caption."""

DETERMINERS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "some",
        "any",
        "its",
        "his",
        "her",
        "their",
        "my",
        "your",
        "our",
        "another",
        "each",
        "every",
        "both",
        "no",
        "several",
        "many",
        "few",
    ]
)
SYMMETRIC = DETERMINERS | frozenset(
    [
        "and",
        "or",
        "with",
        "near",
        "beside",
        "by",
        "next",
        "to",
        "alongside",
        "together",
        "along",
        ",",
        "kissing",
        "hugging",
        "meeting",
        "facing",
        "fighting",
        "dancing",
        "talking",
        "playing",
    ]
)
"""Two things with only these words between them may be named in either order."""
FUNCTION_WORDS = DETERMINERS | frozenset(
    [
        "about",
        "above",
        "across",
        "after",
        "against",
        "along",
        "alongside",
        "amid",
        "among",
        "and",
        "around",
        "as",
        "at",
        "away",
        "because",
        "before",
        "behind",
        "below",
        "beneath",
        "beside",
        "besides",
        "between",
        "beyond",
        "but",
        "by",
        "down",
        "during",
        "except",
        "for",
        "from",
        "front",
        "in",
        "inside",
        "into",
        "like",
        "near",
        "next",
        "nor",
        "of",
        "off",
        "on",
        "onto",
        "opposite",
        "or",
        "out",
        "outside",
        "over",
        "past",
        "per",
        "since",
        "so",
        "than",
        "then",
        "through",
        "throughout",
        "till",
        "to",
        "together",
        "toward",
        "towards",
        "under",
        "underneath",
        "until",
        "up",
        "upon",
        "via",
        "while",
        "with",
        "within",
        "without",
        "yet",
        "i",
        "you",
        "he",
        "she",
        "it",
        "we",
        "they",
        "me",
        "him",
        "them",
        "who",
        "whom",
        "which",
        "whose",
        "what",
        "where",
        "when",
        "why",
        "how",
        "there",
        "here",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "am",
        "has",
        "have",
        "had",
        "having",
        "do",
        "does",
        "did",
        "can",
        "could",
        "will",
        "would",
        "shall",
        "should",
        "may",
        "might",
        "must",
        "not",
        "also",
        "very",
        "just",
        "only",
        "too",
        "more",
        "most",
        "less",
        "least",
    ]
)
VERBS = frozenset(
    [
        "sit",
        "sits",
        "sat",
        "stand",
        "stands",
        "stood",
        "walk",
        "walks",
        "run",
        "runs",
        "ran",
        "lie",
        "lies",
        "lay",
        "lays",
        "hold",
        "holds",
        "held",
        "ride",
        "rides",
        "rode",
        "wear",
        "wears",
        "wore",
        "eat",
        "eats",
        "ate",
        "drink",
        "drinks",
        "play",
        "plays",
        "look",
        "looks",
        "show",
        "shows",
        "jump",
        "jumps",
        "fly",
        "flies",
        "flew",
        "drive",
        "drives",
        "drove",
        "pose",
        "poses",
        "watch",
        "watches",
        "hang",
        "hangs",
        "hung",
        "rest",
        "rests",
        "sleep",
        "sleeps",
        "slept",
        "swim",
        "swims",
        "swam",
        "carry",
        "carries",
        "catch",
        "catches",
        "throw",
        "throws",
        "hit",
        "hits",
        "kick",
        "kicks",
        "stare",
        "stares",
        "smile",
        "smiles",
        "cook",
        "cooks",
        "cut",
        "cuts",
        "make",
        "makes",
        "made",
        "take",
        "takes",
        "took",
        "use",
        "uses",
        "read",
        "reads",
        "write",
        "writes",
        "talk",
        "talks",
        "kiss",
        "kisses",
        "hug",
        "hugs",
        "chase",
        "chases",
        "follow",
        "follows",
        "cross",
        "crosses",
        "enter",
        "enters",
        "leave",
        "leaves",
        "contain",
        "contains",
        "cover",
        "covers",
        "face",
        "faces",
        "lead",
        "leads",
        "prepare",
        "prepares",
        "appear",
        "appears",
        "seem",
        "seems",
        "go",
        "goes",
        "come",
        "comes",
        "gets",
        "get",
        "gives",
        "give",
        "puts",
        "put",
        "pulls",
        "pull",
        "pushes",
        "push",
        "reaches",
        "reach",
        "stays",
        "stay",
        "turns",
        "turn",
    ]
)
NO_VERBS = frozenset(
    [
        "building",
        "king",
        "ring",
        "string",
        "wing",
        "ceiling",
        "painting",
        "clothing",
        "wedding",
        "evening",
        "morning",
        "railing",
        "spring",
        "sling",
        "earring",
        "thing",
        "drawing",
        "dining",
        "bed",
        "red",
        "shed",
        "sled",
        "seed",
        "weed",
        "reed",
        "hundred",
        "speed",
        "breed",
    ]
)
"""Nouns and adjectives that end like a verb."""
GENERIC = frozenset(
    [
        "photo",
        "photograph",
        "picture",
        "image",
        "view",
        "shot",
        "closeup",
        "close-up",
        "scene",
        "background",
        "foreground",
        "group",
        "pair",
        "couple",
        "bunch",
        "piece",
        "set",
        "side",
        "sides",
        "front",
        "back",
        "middle",
        "center",
        "centre",
        "corner",
        "edge",
        "part",
        "lot",
        "kind",
        "type",
        "sort",
        "way",
        "number",
        "row",
        "line",
        "front",
        "style",
        "version",
        "icon",
        "symbol",
        "sign",
        "logo",
        "illustration",
        "clipart",
        "vector",
        "emoji",
        "thing",
        "things",
        "something",
        "someone",
        "somebody",
        "person",
        "people",
        "one",
        "ones",
        "other",
        "others",
        "time",
        "area",
        "place",
    ]
)
"""Nouns whose exchange says nothing about the image, or that other nouns include."""
IRREGULAR = {
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "person": "people",
    "man": "men",
    "woman": "women",
    "policeman": "policemen",
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "deer": "deer",
    "knife": "knives",
    "shelf": "shelves",
    "bookshelf": "bookshelves",
    "wolf": "wolves",
    "fly": "flies",
    "lady": "ladies",
    "woods": "woods",
    "scissors": "scissors",
    "spaghetti": "spaghetti",
    "aircraft": "aircraft",
    "bus": "buses",
    "cactus": "cacti",
    "gentleman": "gentlemen",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
    "toy": "toys",
}


@dataclass(frozen=True)
class Meaning:
    """A word in a family, and the words that may replace it.

    Attributes:
        kind: of the false caption.
        family: the same for all words of a family.
        group: the same for synonyms.
        others: words of the other groups; of a number, those that are written like it.
        aligned: the word in the same position of the only other group; None if there are more groups or no such word.
        is_opposite: whether the family has two groups.
    """

    kind: str
    family: tuple[str, int, bool]
    group: int
    others: tuple[str, ...]
    aligned: str | None
    is_opposite: bool


def plural(noun: str) -> str:
    """The plural of an English noun, by rule or from the list of irregular ones."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def looks_plural(noun: str) -> bool:
    """Whether a noun has the form of a plural."""
    return noun in IRREGULAR.values() or (noun.endswith("s") and not noun.endswith(("ss", "us", "is")))


@cache
def meanings() -> Mapping[str, tuple[Meaning, ...]]:
    """Word or phrase → its meanings. Nouns are known in both numbers, and a plural is replaced by a plural."""
    found: dict[str, list[Meaning]] = {}
    for (kind, families), many in product(FAMILIES.items(), (False, True)):
        if many and kind != "noun":
            continue
        for number, plain in enumerate(families):
            family = tuple(tuple(map(plural, group)) for group in plain) if many else plain
            for group, words in enumerate(family):
                others = [other for other in family if other is not words]
                for position, word in enumerate(words):
                    pair = others[0] if len(others) == 1 else ()
                    meaning = Meaning(
                        kind=kind,
                        family=(kind, number, many),
                        group=group,
                        others=tuple(each for other in others for each in other if each.isdigit() == word.isdigit()),
                        aligned=pair[position] if position < len(pair) else None,
                        is_opposite=len(family) == len(("one", "other")),
                    )
                    found.setdefault(word, []).append(meaning)
    return {word: tuple(each) for word, each in found.items()}


LONGEST_PHRASE = 3
"""Words of the longest phrase in a family."""
