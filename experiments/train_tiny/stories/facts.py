"""What the model may know, and paragraphs of it."""

import dataclasses
import random
from collections.abc import Sequence

from experiments.train_tiny.stories.grammar import draw, expand
from experiments.train_tiny.stories.world import BOYS, COLOURS, FAMILY, FOODS, GIRLS, NUMBERS, PET_NAMES, PLACES, child


@dataclasses.dataclass(frozen=True)
class Animal:
    """What there is to know about an animal; `says` is its sound as a verb and a word, or empty."""

    name: str
    plural: str
    young: str
    says: str
    lives: str
    eats: str
    legs: int
    size: int
    fact: str


ANIMALS = (
    Animal("dog", "dogs", "a puppy", "woof", "with people", "meat and bones", 4, 4, "A dog likes to run and play"),
    Animal("cat", "cats", "a kitten", "meow", "with people", "fish and meat", 4, 3, "A cat sleeps for most of the day"),
    Animal("cow", "cows", "a calf", "moo", "on a farm", "grass", 4, 7, "A cow gives us milk"),
    Animal("horse", "horses", "a foal", "neigh", "on a farm", "grass and hay", 4, 7, "A horse can run very fast"),
    Animal("sheep", "sheep", "a lamb", "baa", "on a farm", "grass", 4, 5, "A sheep gives us wool"),
    Animal("pig", "pigs", "a piglet", "oink", "on a farm", "corn and roots", 4, 5, "A pig likes to roll in the mud"),
    Animal("hen", "hens", "a chick", "cluck", "on a farm", "seeds and grain", 2, 3, "A hen lays eggs"),
    Animal("duck", "ducks", "a duckling", "quack", "near water", "plants and small fish", 2, 3, "A duck can swim"),
    Animal("frog", "frogs", "a tadpole", "croak", "near ponds", "insects", 4, 2, "A frog can jump very far"),
    Animal("owl", "owls", "an owlet", "hoot", "in the forest", "mice", 2, 3, "An owl is awake at night"),
    Animal("lion", "lions", "a cub", "roar", "in Africa", "meat", 4, 6, "A lion is called the king of animals"),
    Animal("mouse", "mice", "a pup", "squeak", "in fields and houses", "seeds", 4, 1, "A mouse is small and quick"),
    Animal("bee", "bees", "a larva", "buzz", "in a hive", "nectar from flowers", 6, 0, "A bee makes honey"),
    Animal("elephant", "elephants", "a calf", "", "in Africa and Asia", "leaves", 4, 9, "An elephant has a trunk"),
    Animal("bear", "bears", "a cub", "", "in the forest", "fish and berries", 4, 7, "A bear sleeps through the winter"),
    Animal("fox", "foxes", "a cub", "", "in the forest", "mice and berries", 4, 4, "A fox has a long bushy tail"),
    Animal("rabbit", "rabbits", "a kit", "", "in a burrow", "grass and carrots", 4, 3, "A rabbit has long ears"),
    Animal("fish", "fish", "a fry", "", "in the water", "plants and insects", 0, 2, "A fish breathes under water"),
    Animal("spider", "spiders", "a spiderling", "", "in a web", "flies", 8, 0, "A spider spins a web"),
    Animal("whale", "whales", "a calf", "", "in the sea", "small sea animals", 0, 10, "A whale is the biggest animal"),
    Animal("penguin", "penguins", "a chick", "", "on the ice and in the sea", "fish", 2, 4, "A penguin cannot fly"),
    Animal("giraffe", "giraffes", "a calf", "", "in Africa", "leaves", 4, 8, "A giraffe has a very long neck"),
)  # fmt: skip
CAPITALS = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Spain", "Madrid"), ("Italy", "Rome"), ("England", "London"),
    ("Japan", "Tokyo"), ("China", "Beijing"), ("Egypt", "Cairo"), ("Greece", "Athens"), ("Portugal", "Lisbon"),
    ("Norway", "Oslo"), ("Austria", "Vienna"), ("Ireland", "Dublin"), ("Canada", "Ottawa"), ("Poland", "Warsaw"),
)  # fmt: skip
THING_COLOURS = (
    ("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("the sun", "yellow"), ("a lemon", "yellow"),
    ("a tomato", "red"), ("a banana", "yellow"), ("an orange", "orange"), ("coal", "black"), ("milk", "white"),
    ("a carrot", "orange"), ("a frog", "green"), ("a strawberry", "red"), ("chocolate", "brown"), ("a leaf", "green"),
)  # fmt: skip
OPPOSITES = (
    ("big", "small"), ("hot", "cold"), ("happy", "sad"), ("fast", "slow"), ("day", "night"), ("up", "down"),
    ("old", "young"), ("wet", "dry"), ("full", "empty"), ("loud", "quiet"), ("open", "closed"), ("hard", "soft"),
    ("light", "dark"), ("near", "far"), ("long", "short"), ("good", "bad"), ("clean", "dirty"), ("early", "late"),
)  # fmt: skip
REASONS = (
    ("is the ground wet", "the ground is wet", "it rained"),
    ("does ice melt", "ice melts", "it gets warm"),
    ("do birds build nests", "birds build nests", "they need a safe place for their eggs"),
    ("do we sleep", "we sleep", "our bodies need rest"),
    ("do plants need rain", "plants need rain", "they drink water with their roots"),
    ("do we wear coats in winter", "we wear coats in winter", "it is cold outside"),
    ("do leaves fall", "leaves fall", "the trees get ready for winter"),
    ("is it dark at night", "it is dark at night", "the sun is on the other side of the earth"),
    ("do bees visit flowers", "bees visit flowers", "they look for nectar to make honey"),
    ("do kites fly", "kites fly", "the wind lifts them up"),
    ("do we eat", "we eat", "food gives us energy"),
    ("do boats float", "boats float", "the water holds them up"),
)
ADVICE = (
    ("it is raining", "take an umbrella and wear boots"),
    ("it is cold", "wear a warm coat and a scarf"),
    ("it is hot", "drink water and stay in the shade"),
    ("it is windy", "hold on to your hat, or fly a kite"),
    ("it is snowing", "wear gloves and build a snowman"),
    ("I am tired", "go to bed early and rest"),
    ("I am hungry", "eat an apple or a piece of bread"),
    ("I am thirsty", "drink a glass of water"),
    ("I am bored", "read a book or go outside and play"),
    ("I am lost", "stay calm and ask someone for help"),
)
FEELINGS = (
    ("sad", "I am sorry that you are sad. [Do you want to hear a story?|A walk or a hug may help.]"),
    ("happy", "That is [wonderful|good to hear]! I am happy too."),
    ("scared", "[Do not worry.|Take a deep breath.] You are safe, and I am here with you."),
    ("angry", "[Take a deep breath and count to ten.|It is all right to be angry.] You will feel better soon."),
    ("lonely", "I am here to talk with you. [Maybe you can call a friend.|You are not alone.]"),
    ("sick", "I am sorry to hear that. [Drink some tea and rest.|I hope that you feel better soon.]"),
)
RHYMES = (
    ("cat", "hat"), ("dog", "frog"), ("mouse", "house"), ("tree", "bee"), ("moon", "spoon"), ("star", "car"),
    ("bear", "chair"), ("cake", "lake"), ("light", "night"), ("ball", "wall"), ("sheep", "sleep"), ("rain", "train"),
)  # fmt: skip
JOKES = (
    ("Why did the bear sleep all winter?", "Nobody dared to wake it up!"),
    ("What do you call a sleeping cow?", "A bulldozer!"),
    ("What goes up when the rain comes down?", "An umbrella!"),
    ("Why did the chicken cross the road?", "To get to the other side!"),
    ("What has hands but cannot clap?", "A clock!"),
    ("What has teeth but cannot bite?", "A comb!"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
SEASONS = (
    ("spring", "warm", "the flowers grow and the birds build nests"),
    ("summer", "hot", "the days are long and children swim in the lake"),
    ("autumn", "cool", "the leaves turn red and yellow and fall from the trees"),
    ("winter", "cold", "the days are short and snow covers the ground"),
)
HELPERS = (
    ("a baker", "bakes bread and cakes"), ("a farmer", "grows food and looks after animals"),
    ("a doctor", "helps people who are sick"), ("a teacher", "helps children to learn"),
    ("a pilot", "flies a plane"), ("a gardener", "looks after plants and flowers"),
    ("a painter", "paints pictures"), ("a firefighter", "puts out fires"), ("a sailor", "works on a ship"),
)  # fmt: skip
UNKNOWN = (
    "Who won the football game?", "What is the price of gold?", "Write a computer program for me.",
    "What is the weather in Paris today?", "Who is the president?", "Explain how a rocket works.",
    "What is the square root of 841?", "Translate this into Latin.", "What happened in the news today?",
    "How do I fix my computer?", "What is quantum physics?", "Who wrote this book?", "Which phone should I buy?",
)  # fmt: skip


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(items[:-1]) + " and " + items[-1]


def animal_fact(rng: random.Random) -> str:
    """A paragraph about an animal."""
    it = rng.choice(ANIMALS)
    legs = f"It has {NUMBERS[it.legs]} legs." if it.legs else "It has no legs."
    says = f"It says {it.says}." if it.says else ""
    lines = [f"It eats {it.eats}.", legs, says, f"A baby {it.name} is called {it.young}.", f"{it.fact}."]
    rng.shuffle(lines)
    template = f"A {it.name} is an animal that lives {it.lives}. " + " ".join(filter(None, lines))
    return expand(rng, template)


def self_introduction(rng: random.Random) -> str:
    """Someone says who they are."""
    who = child(rng)
    fields = who.fields() | draw(
        rng,
        {"age": NUMBERS[5:12], "colour": COLOURS, "pet": ("dog", "cat", "rabbit", "mouse", "duck", "frog"),
         "petname": PET_NAMES, "family": FAMILY, "place at": PLACES, "food": FOODS, "friend": GIRLS + BOYS},
    )  # fmt: skip
    template = rng.choice(
        (
            "[Hello, my|Hello! My|My] name is {name}. I am a {kind}, and I am {age} years old. I live in {home} with "
            "my {family}. [My favourite colour is {colour}.|I like {food}.] I have a [little |]{pet} named {petname}. "
            "[On Sundays, we go to {place}.|We like to play {at}.] My best friend is [called|named] {friend}.",
            "[Hello, my|My] name is {name}. I [like|love] {food}, and my favourite colour is {colour}. I have a {pet}. "
            "Its name is {petname}. We play {at} every day.",
        )
    )
    return expand(rng, template, fields)


def season_fact(rng: random.Random) -> str:
    season, feels, happens = rng.choice(SEASONS)
    return expand(rng, f"In {season}, it is {feels}. [In this season|Then|In {season}], {happens}.")


def mixed_facts(rng: random.Random) -> str:
    """A few sentences of which each is true by itself."""
    country, capital = rng.choice(CAPITALS)
    thing, colour = rng.choice(THING_COLOURS)
    word, opposite = rng.choice(OPPOSITES)
    who, does = rng.choice(HELPERS)
    _, effect, cause = rng.choice(REASONS)
    first = rng.randint(0, 10)
    second = rng.randint(0, 10)
    lines = [
        f"The capital of {country} is {capital}.",
        f"[The colour of {thing} is {colour}.|{thing} is {colour}.]",
        f"The opposite of {word} is {opposite}.",
        f"{who} {does}.",
        f"{effect} because {cause}.",
        f"{NUMBERS[first]} plus {NUMBERS[second]} is {NUMBERS[first + second]}.",
        season_fact(rng),
        counting(rng),
    ]
    return " ".join(expand(rng, line) for line in rng.sample(lines, rng.randint(2, 4)))


def counting(rng: random.Random) -> str:
    first = rng.choice((1, 1, 1, rng.randint(1, 10)))
    last = min(first + rng.randint(2, 9), 20)
    return expand(rng, listed([NUMBERS[i] for i in range(first, last + 1)]) + ".")
