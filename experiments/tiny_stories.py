"""English for a very small model: short stories, little facts and dialogues, made up from a grammar.

    python -m experiments.tiny_stories 20

prints twenty of them. Nothing is read from anywhere: every sentence comes from the templates below, so the text is the
same for the same seed, and anyone may use it.

A template is a string with `[one|another]` choices, which nest, and `{field}` places. A field written with a capital
first letter is capitalised. Fields are drawn once a story, so that a red ball stays red until the end.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import app

Fields = Mapping[str, str]
Turn = tuple[str, str]
"""A question and its answer."""


@dataclasses.dataclass(frozen=True)
class Document:
    """Messages of (role, text). A text that is no dialogue is one message whose role is empty."""

    messages: tuple[tuple[str, str], ...]


# --- the grammar -----------------------------------------------------------------------------------------------------

CHOICE = re.compile(r"\[([^\[\]]*)\]")
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
SENTENCE = re.compile(r"(^|[.!?] |\.\" )([a-z])")


class Capitals(dict):
    """Fields, and the same with a capital first letter under their names with a capital first letter."""

    def __missing__(self, name: str) -> str:
        lower = name[0].lower() + name[1:]
        if lower == name:
            raise KeyError(name)
        return self[lower][:1].upper() + self[lower][1:]


def expand(rng: random.Random, template: str, fields: Fields | None = None) -> str:
    """A template with its choices made, its fields filled in, its articles and capitals right."""
    while match := CHOICE.search(template):
        chosen = rng.choice(match[1].split("|"))
        template = template[: match.start()] + chosen + template[match.end() :]
    text = " ".join(template.format_map(Capitals(fields or {})).split())
    text = ARTICLE.sub(r"\1n ", text)
    return SENTENCE.sub(lambda found: found[1] + found[2].upper(), text)


def draw(rng: random.Random, needs: Mapping[str, Sequence]) -> dict[str, str]:
    """Fields drawn from pools.

    Args:
        needs: for a name or several with spaces between, the pool: of strings, from which each name gets another one,
            or of tuples, which are facts that belong together, one for each name.
    """
    fields = {}
    for names, pool in needs.items():
        names = names.split()
        values = rng.choice(pool) if isinstance(pool[0], tuple) else rng.sample(pool, len(names))
        fields |= zip(names, values, strict=True)
    return fields


# --- the world -------------------------------------------------------------------------------------------------------

GIRLS = ("Mia", "Lily", "Anna", "Zoe", "Ella")
BOYS = ("Tom", "Ben", "Max", "Sam", "Leo")
PET_NAMES = ("Pip", "Coco", "Momo", "Hazel", "Biscuit")
HEROES = (
    ("rabbit", "a cosy burrow under a hill"),
    ("fox", "a den at the edge of the forest"),
    ("mouse", "a tiny hole behind a barn"),
    ("bear", "a warm cave in the mountains"),
    ("squirrel", "a hollow in an old oak tree"),
    ("duck", "a nest beside a quiet pond"),
    ("hedgehog", "a heap of leaves in a garden"),
    ("owl", "a tall tree in the forest"),
    ("frog", "a green pond in the meadow"),
    ("kitten", "a basket on a farm"),
    ("puppy", "a little house on a farm"),
    ("turtle", "a quiet place beside the lake"),
)
HOUSES = ("small", "white", "red", "yellow", "little")
HOUSE_PLACES = ("by the sea", "near the forest", "on a hill", "in a town")
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "white", "brown", "pink", "black")
TOYS = ("ball", "kite", "hat", "toy boat", "scarf", "drum", "toy car", "teddy bear", "bucket", "balloon", "whistle")
PLACES = (
    ("the park", "in the park"),
    ("the garden", "in the garden"),
    ("the forest", "in the forest"),
    ("the beach", "at the beach"),
    ("the farm", "at the farm"),
    ("the meadow", "in the meadow"),
    ("the river", "by the river"),
    ("the lake", "by the lake"),
    ("the big hill", "on the big hill"),
    ("the market", "at the market"),
)
SPOTS = (
    "under the bench", "behind the big tree", "in the tall grass", "behind a rock", "under a bush", "near the gate",
    "beside the path", "under a pile of leaves", "behind the fence", "inside an old box",
)  # fmt: skip
FOODS = ("apples", "cookies", "berries", "pears", "nuts", "plums", "cakes", "carrots", "strawberries")
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
TRAITS = ("kind", "brave", "curious", "gentle", "clever", "cheerful", "quiet", "playful", "friendly", "patient")
WEATHER = ("sunny", "warm", "bright", "cloudy", "windy", "cool")
FAMILY = ("mother", "father", "grandmother", "grandfather", "aunt", "uncle")
TREASURES = ("shiny stone", "blue feather", "golden leaf", "silver button", "round shell", "old key", "glass marble")


@dataclasses.dataclass(frozen=True)
class Character:
    """Someone in a story. `kind` is girl, boy or an animal."""

    name: str
    kind: str
    home: str
    he: str

    def fields(self, prefix: str = "") -> dict[str, str]:
        his, him = ("his", "him") if self.he == "he" else ("her", "her")
        return {f"{prefix}name": self.name, f"{prefix}kind": self.kind, f"{prefix}home": self.home} | {
            f"{prefix}he": self.he, f"{prefix}his": his, f"{prefix}him": him
        }  # fmt: skip


def child(rng: random.Random) -> Character:
    girl = rng.random() < 0.5
    home = f"a {rng.choice(HOUSES)} house {rng.choice(HOUSE_PLACES)}"
    return Character(rng.choice(GIRLS if girl else BOYS), "girl" if girl else "boy", home, "she" if girl else "he")


def animal(rng: random.Random) -> Character:
    return Character(rng.choice(PET_NAMES), *rng.choice(HEROES), rng.choice(("he", "she")))


def pair(rng: random.Random) -> tuple[Character, Character]:
    """A hero and a friend, two children or two animals of different kinds."""
    make = rng.choice((child, animal))
    hero = make(rng)
    while True:
        friend = make(rng)
        if friend.name != hero.name and (make is child or friend.kind != hero.kind):
            return hero, friend


# --- stories ---------------------------------------------------------------------------------------------------------

OPENINGS = (
    "Once upon a time, there was a [little|small|young] {kind} named {name}. {He} lived in {home}.",
    "Once upon a time, a {trait} {kind} named {name} lived in {home}.",
    "Once upon a time, there was a {trait} {kind} named {name}.",
    "There was once a [little|small|young] {kind} named {name}. {He} was very {trait}.",
    "{Name} was a {trait} [little |]{kind} who lived in {home}.",
    "In {home}, there lived a {trait} {kind} named {name}.",
)
MEETINGS = (
    "{His} best friend was [called {fname}|a {fkind} named {fname}].",
    "{He} had a good friend, a {fkind} named {fname}.",
    "{Name} and {fname}, a {fkind}, were [good|the best of] friends.",
)


@dataclasses.dataclass(frozen=True)
class Plot:
    """A story's skeleton.

    Attributes:
        topic: what a listener would ask for, a template.
        needs: pools of its fields, for `draw`.
        lines: its sentences in order, templates.
        more: computes further fields from those drawn.
    """

    topic: str
    needs: Mapping[str, Sequence]
    lines: tuple[str, ...]
    more: Callable[[random.Random, dict[str, str]], Fields] = lambda rng, fields: {}


def shares(rng: random.Random, fields: dict[str, str]) -> Fields:
    """Numbers of a story in which some of `first` things are given away."""
    first = rng.randint(3, 9)
    given = rng.randint(1, first - 1)
    return dict(first=NUMBERS[first], given=NUMBERS[given], left=NUMBERS[first - given])


PLOTS = (
    Plot(
        topic="a lost {toy}",
        needs={"toy": TOYS, "colour": COLOURS, "place at": PLACES, "spot1 spot2 spot3": SPOTS},
        lines=(
            "{Name} had a {colour} {toy}[| that {he} loved very much|, and {he} took it everywhere].",
            "One {weather} [day|morning|afternoon], {he} took the {toy} to {place}.",
            "{He} played and played, but then {he} [could not find it|saw that it was gone].",
            '"[Oh no! |]Where is my {toy}?" [cried|asked] {name}. {He} felt very sad.',
            '{Fname} [came over|heard {him}|saw {him}] and said, "[Do not worry|Do not be sad|Please do not cry]. '
            '[I will help you look|We will find it together|Let us look for it]."',
            "[First, they|They] looked {spot1}, but it was not there. Then they looked {spot2}, but it was not there.",
            "[At last|Finally|In the end], {fname} looked {spot3}. There was the {colour} {toy}!",
            '"[Thank you|Thank you so much], {fname}!" said {name}. {He} [gave {fhim} a big hug|smiled|jumped for '
            'joy].',
            "[The two friends|{Name} and {fname}] played [together |]with the {toy} until [the sun went down|it was "
            "time "
            "to go home].",
        ),
    ),
    Plot(
        topic="sharing {food}",
        needs={"food": FOODS, "place at": PLACES, "basket": ("basket", "bag", "box")},
        more=shares,
        lines=(
            "One {weather} day, {name} went to {place} with {first} {food} in a {basket}.",
            "[On the way, {he}|There {he}|Soon {he}] met {fname}. {Fname} looked [sad|tired and hungry|unhappy].",
            '"What is wrong?" asked {name}.',
            '"I am [so |very |]hungry," said {fname}. "I have [nothing to eat|no food today]."',
            "{Name} [thought for a moment|looked into the {basket}|smiled]. "
            '"I have {first} {food}," {he} said. "I will give you {given}."',
            "So {name} gave {given} {food} to {fname} and kept {left}.",
            "They sat down {at} and ate [together|side by side]. The {food} were [sweet|very good|delicious].",
            '"You are [so kind|a good friend]," said {fname}. "[Thank you|Thank you for sharing]."',
            "{Name} felt warm and happy inside. [Sharing made the {food} taste even better.|It was nice to share.]",
        ),
    ),
    Plot(
        topic="helping a {stuck}",
        needs={
            "place at": PLACES,
            "stuck where": (
                ("bird", "caught in a bush"),
                ("lamb", "stuck in the mud"),
                ("butterfly", "caught in a net"),
                ("cat", "stuck in a tall tree"),
                ("bee", "trapped in a jar"),
                ("snail", "lying on its back"),
                ("fish", "trapped in a tiny pool"),
                ("goat", "caught in a fence"),
            ),
        },
        lines=(
            "One {weather} [day|morning], {name} [was walking to|went for a walk near] {place}.",
            '[Suddenly|Then], {he} heard a small voice. "Help! Help me, please!"',
            "{Name} looked around and saw a {stuck}. It was {where}.",
            '"[Do not be afraid|Stay calm]," said {name}. "I will help you."',
            "It was [hard|not easy], and {name} was [a little scared|very careful]. "
            "{He} called {fname}, and [the two of them|they] worked together.",
            "[After a while|Soon|At last], the {stuck} was free.",
            '"Thank you!" said the {stuck}. "[You saved me|You are very brave|I will never forget this]."',
            "[From that day on|After that], the {stuck} came to visit {name} every [day|week|morning], "
            "and they were [good|the best of] friends.",
        ),
    ),
    Plot(
        topic="a rainy day",
        needs={
            "indoors made": (
                ("painted pictures", "a picture of a rainbow"),
                ("built a castle out of boxes", "a castle with four towers"),
                ("baked a cake", "a sweet cake with berries"),
                ("made paper boats", "ten little paper boats"),
                ("built a tent out of blankets", "a tent as big as a bed"),
                ("sang songs", "a new song about the rain"),
            ),
            "place at": PLACES,
        },
        lines=(
            "One [morning|day], {name} wanted to play {at}, but it [was raining|began to rain].",
            "The rain fell [on the roof|on the grass], and there were big puddles everywhere.",
            '"[Now I cannot play|There is nothing to do]," said {name}. {He} [was sad|was bored|looked out at the grey '
            'sky].',
            "Then [there was a knock, and {fname} came in|{fname} came to visit]. "
            '"[We can have fun inside|Let us play inside]," said {fname}.',
            "So they {indoors}. They [laughed a lot|worked all morning], and in the end they had {made}.",
            "[Then|After lunch|In the afternoon], the rain stopped and the sun came out. "
            "There was a [big|bright|beautiful] rainbow in the sky.",
            '"Look!" said {name}. "[It is red, orange, yellow, green and blue|What a beautiful rainbow]!"',
            "They ran outside and jumped in the puddles. [It was a good day after all.|{Name} liked the rain now.]",
        ),
    ),
    Plot(
        topic="a present for {his} {family}",
        needs={
            "gift part1 part2 part3 doing done": (
                ("cake", "flour", "eggs", "honey", "baked", "mixed everything in a bowl"),
                ("kite", "paper", "string", "two sticks", "made", "tied everything together"),
                ("necklace", "shells", "a string", "a blue bead", "made", "put everything on the string"),
                ("birdhouse", "wood", "nails", "paint", "built", "put the pieces together"),
                ("soup", "carrots", "potatoes", "water", "cooked", "put everything in a pot"),
                ("crown", "leaves", "flowers", "grass", "made", "wove everything together"),
            ),
            "family": FAMILY,
        },
        lines=(
            "It was [almost |]the birthday of {his} {family}, and {name} wanted to make a [special |]present.",
            '"I will make a {gift}," [said {name}|{he} said]. "I need {part1}, {part2} and {part3}."',
            "{He} found {part1} at home. {His} friend {fname} gave {him} {part2}.",
            "[But where was {part3}|But {he} had no {part3}]"
            "[? {Name} looked and looked|. {Name} searched everywhere], and [at last|finally] {he} found some [at the "
            "market|in the shed].",
            "Then {name} [went to work|got to work]. {He} {done}. It took [all day|a long time].",
            '"[Happy birthday|This is for you]!" said {name}, and gave the {gift} to {his} {family}.',
            '"Did you make this [yourself|all by yourself]?" asked {his} {family}. "It is the best {gift} in the '
            '[whole |]world!"',
            "{Name} was very proud. {He} [smiled all day|smiled from ear to ear].",
        ),
    ),
    Plot(
        topic="a noise in the night",
        needs={
            "visitor noise want": (
                ("hedgehog", "a rustle", "looking for something to eat"),
                ("owl", "a hoot", "singing to the moon"),
                ("cat", "a scratch", "trying to get in from the cold"),
                ("mouse", "a squeak", "eating a piece of cheese"),
                ("branch", "a tap", "moving in the wind"),
                ("frog", "a splash", "jumping in a puddle"),
            )
        },
        lines=(
            "One [dark|cold|quiet] night, {name} was in bed. [The moon was high.|The stars were bright.|]",
            "[Suddenly|Then], {he} heard {noise} outside. {Name} [was scared|pulled up the blanket|felt afraid].",
            '"What is that?" {he} [whispered|said in a small voice]. "[Is it a monster|Who is there]?"',
            "There it was again: {noise}! {Name} took a [deep breath|lamp in {his} hand] and [opened the door|looked "
            "out of "
            "the window].",
            "It was only a {visitor}, {want}!",
            "{Name} [began to laugh|laughed and laughed]. "
            '"[You are not scary at all|You gave me a fright], little {visitor}," {he} said.',
            "Then {he} went back to bed and [slept until morning|fell asleep at once|dreamed of the stars]. "
            "{He} was not afraid of the dark [any more|again].",
        ),
    ),
    Plot(
        topic="learning to {skill}",
        needs={
            "skill skilled tip fail": (
                ("swim", "swimming", "Kick your legs slowly", "went under the water"),
                ("skate", "skating", "Bend your knees", "fell on the ice"),
                ("climb", "climbing", "Hold on with both hands", "slid back down"),
                ("whistle", "whistling", "Make a little circle with your mouth", "made no sound at all"),
                ("dance", "dancing", "Listen to the music", "fell over {his} own feet"),
                ("juggle", "juggling", "Start with two balls", "dropped all the balls"),
                ("paint", "painting", "Take your time", "spilled the paint"),
            ),
            "teacher": FAMILY,
        },
        lines=(
            "{Name} wanted to learn to {skill}. {Fname} could {skill} very well, but {name} could not.",
            "On [Monday|the first day], {he} tried, but {he} {fail}.",
            "On [Tuesday|the second day], {he} tried again, and again {he} {fail}.",
            '"I will never learn to {skill}," said {name} [sadly|with tears in {his} eyes].',
            '"[Do not give up|Try once more]," said {his} {teacher}. "{tip}."',
            "So {name} tried [again|one more time]. {He} did what {his} {teacher} had said, and [this time|slowly, "
            "slowly] it "
            "worked!",
            '"[I can do it|Look at me]!" [cried|shouted] {name}. "I can {skill}!"',
            "{Fname} clapped. [From then on|After that], {name} and {fname} went {skilled} [together |]every "
            "[day|week].",
        ),
    ),
    Plot(
        topic="a seed",
        needs={
            "plant a_plant": (
                ("sunflower", "a tall yellow sunflower"),
                ("apple tree", "a little apple tree"),
                ("rose", "a beautiful red rose"),
                ("pumpkin", "a big orange pumpkin"),
                ("bean plant", "a green bean plant"),
                ("strawberry plant", "a strawberry plant with sweet berries"),
            ),
            "family": FAMILY,
        },
        lines=(
            "One day, {his} {family} gave {name} a [tiny|small|little brown] seed.",
            '"What is it?" asked {name}. "[Wait and see|You will see]," said {his} {family}.',
            "{Name} [dug a hole in|made a hole in] the ground and planted the seed. "
            "{He} gave it water every [day|morning].",
            "The first week, nothing happened. The second week, nothing happened.",
            '"Maybe the seed is [asleep|bad|too small]," said {fname}. But {name} [did not give up|was patient|kept on '
            "waiting].",
            "[Then one morning|One sunny morning], there was a [little|tiny] green leaf. {Name} [jumped for joy|was so "
            "happy].",
            "It grew and grew. By the [summer|end of summer], it was {a_plant}!",
            '"Good things take time," said {his} {family}. {Name} [smiled and nodded|looked at the {plant} and '
            'smiled].',
        ),
    ),
    Plot(
        topic="a trip to {place}",
        needs={
            "place at": PLACES,
            "family": FAMILY,
            "seen1 seen2 seen3": (
                "a brown cow", "two white ducks", "a red bird", "a big dog", "three butterflies", "a sleepy cat",
                "a green frog", "a grey horse", "five little fish",
            ),
            "treasure": TREASURES,
        },
        lines=(
            "One {weather} morning, {name} and {his} {family} went to {place}. {Fname} came too.",
            "On the way, they saw {seen1}. Then they saw {seen2}.",
            '"Look over there!" [cried|said] {fname}. It was {seen3}!',
            "When they came to {place}, they [ran and played|played games|sat in the sun]. {Name} found a {treasure} "
            "on the ground.",
            '"[May I keep it|Can I take it home]?" {he} asked. "[Yes, you may|Of course]," said {his} {family}.',
            "[At noon|Later], they ate bread and cheese, and [everyone shared|there was enough for all].",
            "[In the evening|When the sun went down], they walked home. {Name} was tired but [happy|very happy].",
            "{He} put the {treasure} next to {his} bed and [fell asleep with a smile|dreamed about {place}].",
        ),
    ),
    Plot(
        topic="telling the truth",
        needs={
            "thing": ("cup", "plate", "vase", "lamp", "window", "clock", "bowl"),
            "colour": COLOURS,
            "family": FAMILY,
            "toy": ("ball", "toy car", "drum", "toy boat"),
        },
        lines=(
            "One day, {name} was playing with a {toy} [inside|in the kitchen]. {His} {family} had said, "
            '"Please play outside," but {name} did not listen.',
            "Crash! The {toy} hit the {colour} {thing}, and it broke into [many|a hundred] pieces.",
            '"[Quick, let us hide it|Nobody saw it]," said {fname}. But {name} [shook {his} head|felt bad about that].',
            "[{Name} was afraid, but {he}|{He} was scared, but {he}] went to {his} {family} and told the truth.",
            '"I broke the {thing}," said {name}. "I am [so |very |]sorry."',
            "{His} {family} was quiet for a moment. Then {his} {family} smiled. "
            '"Thank you for telling me the truth," {his} {family} said. "[That was brave|A {thing} is only a '
            '{thing}]."',
            "Together they [cleaned the floor|picked up the pieces]. [After that|From then on], {name} always played "
            "with the {toy} outside.",
        ),
    ),
    Plot(
        topic="a birthday",
        needs={"toy": TOYS, "colour": COLOURS, "age": NUMBERS[4:10], "food": ("cake", "pie", "cheesecake")},
        lines=(
            "Today was a special day. It was the birthday of {name}, and {he} was {age} years old.",
            "{He} waited for {his} friends, but [no one came|nobody was there] in the morning.",
            '"[Did they forget|Has everyone forgotten] my birthday?" thought {name}. {He} [felt lonely|was sad].',
            "[At noon|Then], {he} [opened the door|went outside] to look for {fname}.",
            '"Surprise!" [they all shouted|cried {fname} and all the others]. There were balloons and a big {food} '
            'with '
            "{age} candles.",
            "{Fname} gave {name} a box. In the box was a {colour} {toy}!",
            '"[I always wanted a {toy}|This is just what I wanted]," said {name}. "Thank you, {fname}!"',
            "They sang and danced and ate the {food}. It was the best birthday ever.",
        ),
    ),
    Plot(
        topic="a race",
        needs={"place at": PLACES, "prize": TREASURES},
        lines=(
            '"I am [the fastest|faster than everyone]," said {fname}. "[Nobody|No one] can run as fast as I can!"',
            '"Let us [have a race|race] to {place}," said {name}. "The winner gets this {prize}."',
            "One, two, three, go! {Fname} ran [very fast|like the wind], and {name} was [far |]behind.",
            '{Fname} looked back and laughed. "I have [so much time|lots of time]," {fhe} said, and {fhe} [lay down to '
            "sleep|stopped to rest under a tree].",
            "But {name} did not stop. {He} went on, step by step, [past the tree|past {fname}] [and over the "
            "hill|and down "
            "the road].",
            "When {fname} woke up, it was too late. {Name} was [already |]{at}!",
            '"You won," said {fname}. "[I should not have been so proud|I will not boast again]."',
            '"You are still very fast," said {name} kindly. [Then they laughed together.|And they were friends again.]',
        ),
    ),
    Plot(
        topic="a new friend",
        needs={"place at": PLACES, "game": ("hide and seek", "tag", "catch", "pirates", "a guessing game")},
        lines=(
            "{Name} [was new in town|had just moved to a new home|had no one to play with]. {He} felt [lonely|shy].",
            "One {weather} day, {name} went to {place} and saw a {fkind} [sitting all alone|playing alone].",
            "{Name} was [too shy to speak|a bit shy]. {He} [hid behind a tree|looked down at {his} feet].",
            'But then {he} [was brave|took a deep breath] and said, "Hello. My name is {name}. What is your name?"',
            '"My name is {fname}," said the {fkind}. "[Do you want to play {game}|Would you like to play {game}]?"',
            '"[Yes, please|Oh yes]!" said {name}. They played {game} {at} [all day|until dark].',
            '"Will you come back tomorrow?" asked {fname}. "[Of course|Yes, I will]," said {name}.',
            "And so {name} [was not lonely any more|had a new friend]. [One small hello was all it took.|]",
        ),
    ),
    Plot(
        topic="the moon",
        needs={
            "high": ("the highest hill", "the tallest tree", "the roof of the barn", "a tall ladder"),
            "treasure": TREASURES,
        },
        lines=(
            "Every night, {name} looked at the [moon|big round moon]. "
            '"I want to touch the moon," {he} said to {fname}.',
            '"[The moon is too far away|Nobody can touch the moon]," said {fname}. But {name} wanted to try.',
            "{He} climbed [up |]to the top of {high} and [held out {his} hand|reached up as far as {he} could].",
            "But the moon was still far, far away. {Name} [sighed|was sad] and climbed down.",
            '[Then|Just then], {fname} called, "Come and look at the water!" There was the moon, [shining|floating] '
            "in the pond.",
            "{Name} put {his} hand into the water [very |]gently. The moon danced and broke into little lights.",
            '"[I touched the moon|Now I have touched it]!" said {name} [happily|and laughed].',
            "[The two friends|They] sat by the pond [for a long time|until they were sleepy], and the "
            "[moon smiled down on them|stars came out one by one].",
        ),
    ),
    Plot(
        topic="a cold winter",
        needs={"food": ("nuts", "berries", "seeds", "apples"), "colour": COLOURS},
        lines=(
            "[Winter came|It was winter], and the snow was [deep|white and deep]. It was very cold.",
            "{Name} had [worked hard all summer|been busy in autumn]. {He} had a [big pile|whole room full] of "
            "{food} at home.",
            "{Fname} had played all summer. Now {fhe} was cold and had nothing to eat.",
            "{Fname} knocked at the door. Knock, knock, knock! "
            '"May I come in?" {fhe} asked. "I am [so cold|freezing]."',
            '"[Come in, come in|Of course you may]," said {name}. {He} gave {fname} {food}, hot tea and a {colour} '
            'blanket.',
            '"[I should have worked too|I was foolish]," said {fname}. "Next summer, I will help you."',
            "They sat by the fire and told stories while the snow fell outside.",
            "When spring came, {fname} [kept {fhis} word|did as {fhe} had said], and the two of them worked side by "
            "side.",
        ),
    ),
    Plot(
        topic="flying a kite",
        needs={"colour": COLOURS, "place at": PLACES, "long": ("long tail", "smiling face", "star on it")},
        lines=(
            "{Name} made a {colour} kite with a {long}. {He} wanted to see it fly.",
            "On Monday there was no wind. The kite [fell down|did not fly]. On Tuesday it rained.",
            '"[Will my kite ever fly|When will the wind come]?" asked {name}. "[Be patient|Just wait]," said {fname}.',
            "On Wednesday the wind blew [hard|through the trees]. {Name} and {fname} ran to {place}.",
            '"Run, {name}, run!" called {fname}. {Name} ran as fast as {he} could, and the kite went up, up, up.',
            "It flew [over the trees|higher than the birds], and everyone {at} looked up at the {colour} kite.",
            "Then the string [broke|slipped out of {his} hand]! The kite flew away, [over the hills|far away].",
            '{Name} was sad, but {fname} said, "[Maybe it wants to see the world|Now it is free]." '
            "{Name} [waved|smiled and waved]. The next day, they made a new kite together.",
        ),
    ),
)  # fmt: skip
ENDINGS = ("", "", "", "The end.", "And they all lived happily ever after.")


def story(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A story, and the fields that it was made from, with `topic`."""
    plot = rng.choice(PLOTS)
    hero, friend = pair(rng)
    fields = hero.fields() | friend.fields("f") | draw(rng, {"trait": TRAITS, "weather": WEATHER} | plot.needs)
    fields = {name: value.format_map(fields) for name, value in fields.items()}
    fields |= plot.more(rng, fields)
    fields["topic"] = plot.topic.format_map(fields)
    opening = rng.choice(OPENINGS)
    meeting = "" if plot.topic == "a new friend" else rng.choice(MEETINGS)
    lines = (opening, meeting, *plot.lines, rng.choice(ENDINGS))
    return " ".join(filter(None, (expand(rng, line, fields) for line in lines))), fields


# --- facts -----------------------------------------------------------------------------------------------------------


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


# --- dialogues -------------------------------------------------------------------------------------------------------


def greeting(rng: random.Random) -> Turn:
    name = rng.choice(GIRLS + BOYS)
    return rng.choice(
        (
            (
                "[Hello|Hi|Hello there|Good morning|Hey][!|.|]",
                "[Hello|Hi]! [How can I help you?|It is nice to meet you.]",
            ),
            (f"[Hello|Hi][,| there,] my name is {name}.", f"Hello, {name}! It is nice to meet you."),
            (f"[Hello|Hi], I am {name}.", f"Hello, {name}! [It is nice to meet you.|How can I help you?]"),
            ("How are you[ today|]?", "I am [very well|fine], thank you. How are you?"),
            ("[Say hello|Please say hello].", "Hello!"),
        )
    )


def farewell(rng: random.Random) -> Turn:
    return rng.choice(
        (
            ("[Thank you|Thanks|Thank you very much][!|.]", "You are welcome!"),
            ("[Goodbye|Bye|Good night][!|.]", "Goodbye! [Come back soon.|Sleep well.|Have a nice day.]"),
            ("That was [nice|good|great].", "I am glad that you liked it."),
        )
    )


def about_me(rng: random.Random) -> Turn:
    return rng.choice(
        (
            (
                "What is your name?|Who are you?|What are you?",
                "I am a very small language model. I know little stories.",
            ),
            (
                "What can you do?|Can you help me?|How can you help me?",
                "I can tell stories, count, and answer small questions.",
            ),
            ("Do you like stories?", "Yes, I love stories. Shall I tell you one?"),
            ("Are you a person?|Are you a human?", "No, I am a very small language model."),
            ("How old are you?", "I do not have an age. I am only a small model."),
        )
    )


def animal_question(rng: random.Random) -> Turn:
    it = rng.choice(ANIMALS)
    turns = [
        (f"What do {it.plural} eat?|What does a {it.name} eat?", f"A {it.name} eats {it.eats}."),
        (f"Where do {it.plural} live?|Where does a {it.name} live?", f"A {it.name} lives {it.lives}."),
        (
            f"What is a baby {it.name} called?|What do you call a baby {it.name}?",
            f"A baby {it.name} is called {it.young}.",
        ),
        (f"How many legs does a {it.name} have?", f"A {it.name} has {NUMBERS[it.legs] if it.legs else 'no'} legs."),
        (f"Tell me [something|a fact] about {it.plural}.|What do you know about {it.plural}?", f"{it.fact}."),
    ]
    if it.says:
        turns.append((f"What does a {it.name} say?|What sound does a {it.name} make?", f"A {it.name} says {it.says}."))
    return rng.choice(turns)


def comparison(rng: random.Random) -> Turn:
    while True:
        one, other = rng.sample(ANIMALS, 2)
        if abs(one.size - other.size) > 1:
            break
    big, small = (one, other) if one.size > other.size else (other, one)
    return rng.choice(
        (
            (f"Which is bigger, a {one.name} or a {other.name}?", f"A {big.name} is bigger than a {small.name}."),
            (f"Which is smaller, a {one.name} or a {other.name}?", f"A {small.name} is smaller than a {big.name}."),
            (
                f"Is a {one.name} bigger than a {other.name}?",
                f"{'Yes' if one is big else 'No'}, a {big.name} is bigger than a {small.name}.",
            ),
        )
    )


def fact_question(rng: random.Random) -> Turn:
    country, capital = rng.choice(CAPITALS)
    thing, colour = rng.choice(THING_COLOURS)
    word, opposite = rng.choice(rng.choice((OPPOSITES, [pair[::-1] for pair in OPPOSITES])))
    who, does = rng.choice(HELPERS)
    ask, effect, cause = rng.choice(REASONS)
    season, feels, happens = rng.choice(SEASONS)
    state, todo = rng.choice(ADVICE)
    rhyming, rhyme = rng.choice(rng.choice((RHYMES, [pair[::-1] for pair in RHYMES])))
    return rng.choice(
        (
            (f"What is the capital of {country}?", f"The capital of {country} is {capital}."),
            (f"What [colour|color] is {thing}?", f"{thing} is {colour}."),
            (f"What is the opposite of {word}?", f"The opposite of {word} is {opposite}."),
            (f"What does {who} do?", f"{who} {does}."),
            (f"Why {ask}?", f"{effect} because {cause}."),
            (
                f"What is [the weather|it] like in {season}?|What happens in {season}?",
                f"In {season}, it is {feels}. Then {happens}.",
            ),
            (
                f"What should I do when {state}?|{state}. What should I do?",
                f"When {state.replace('I am', 'you are')}, {todo}.",
            ),
            (
                f"What rhymes with {rhyming}?|Tell me a word that rhymes with {rhyming}.",
                f"{rhyme} rhymes with {rhyming}.",
            ),
        )
    )  # fmt: skip


def feeling(rng: random.Random) -> Turn:
    word, answer = rng.choice(FEELINGS)
    return f"I [am|feel] [very |so |]{word}[ today|].", answer


def calendar(rng: random.Random) -> Turn:
    names, what = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    i = rng.randrange(len(names))
    after, before = names[(i + 1) % len(names)], names[i - 1]
    return rng.choice(
        (
            (f"What {what} comes after {names[i]}?", f"{after} comes after {names[i]}."),
            (f"What {what} comes before {names[i]}?", f"{before} comes before {names[i]}."),
            ("[Name|What are|Tell me] the days of the week.", f"The days of the week are {listed(DAYS)}."),
        )
    )


def numbers_question(rng: random.Random) -> Turn:
    """Counting and small sums, in figures and in words."""
    one, other = rng.randint(0, 10), rng.randint(0, 10)
    more, less = max(one, other), min(one, other)
    first = rng.choice((1, 1, rng.randint(1, 10)))
    last = min(first + rng.randint(2, 9), 20)
    fields = draw(rng, {"name": GIRLS + BOYS, "food": FOODS})
    name, food = fields["name"], fields["food"]
    few, some = rng.randint(2, 8), rng.randint(2, 8)
    count = listed([NUMBERS[i] for i in range(first, last + 1)])
    start = "" if first == 1 and rng.random() < 0.5 else f"from {NUMBERS[first]} "
    return rng.choice(
        (
            (f"What is {one} [+|plus] {other}?|{one} + {other} = ?", f"{one} + {other} = {one + other}."),
            (f"What is {more} [-|minus] {less}?|{more} - {less} = ?", f"{more} - {less} = {more - less}."),
            (
                f"What is {NUMBERS[one]} plus {NUMBERS[other]}?",
                f"{NUMBERS[one]} plus {NUMBERS[other]} is {NUMBERS[one + other]}.",
            ),
            (f"[Count|Please count|Can you count] {start}to {NUMBERS[last]}.", f"{count}."),
            (
                f"{name} has {NUMBERS[few]} {food} and gets {NUMBERS[some]} more. How many {food} does {name} have?",
                f"{name} has {NUMBERS[few + some]} {food}.",
            ),
            (
                f"{name} has {NUMBERS[few + some]} {food} and eats {NUMBERS[some]}. How many {food} are left?",
                f"{NUMBERS[few]} {food} are left.",
            ),
        )
    )  # fmt: skip


def reading_question(rng: random.Random) -> Turn:
    """A question whose answer is in what was said just before."""
    fields = draw(
        rng, {"name other": GIRLS + BOYS, "toy thing": TOYS, "colour tint": COLOURS, "place at": PLACES, "spot": SPOTS}
    )
    question, answer = rng.choice(
        (
            ("{Name} has a {colour} {toy}. What [colour|color] is the {toy}?", "The {toy} is {colour}."),
            (
                "{Name} has a {colour} {toy} and {other} has a {tint} {thing}. Who has the {toy}?",
                "{Name} has the {toy}.",
            ),
            (
                "{Name} has a {colour} {toy} and {other} has a {tint} {thing}. What [colour|color] is the {thing}?",
                "The {thing} is {tint}.",
            ),
            ("The {toy} is {spot}. Where is the {toy}?", "The {toy} is {spot}."),
            ("{Name} and {other} are {at}. Where are they?", "{Name} and {other} are {at}."),
            ("{Name} lost a {toy} {at}. What did {name} lose?", "{Name} lost a {toy}."),
        )
    )
    return question.format_map(Capitals(fields)), answer.format_map(Capitals(fields))


def repeating(rng: random.Random) -> Turn:
    """Words to say again."""
    things = [f"a {colour} {toy}" for colour, toy in zip(rng.sample(COLOURS, 2), rng.sample(TOYS, 2))]
    pool = [*rng.sample(GIRLS + BOYS + PET_NAMES, 4), *things, rng.choice(SPOTS), rng.choice(PLACES)[1]]
    pool += [f"{rng.choice(NUMBERS[2:])} {rng.choice(FOODS)}", f"the {rng.choice(ANIMALS).name}"]
    words = " and ".join(rng.sample(pool, rng.randint(1, 4)))
    return f"[Say|Please say|Repeat after me|Repeat this|Say after me]: {words}.", f"{words}."


def naming(rng: random.Random) -> Turn:
    """Lists of things of a kind."""
    kinds = {
        "animals": [it.name for it in ANIMALS],
        "farm animals": ["cow", "horse", "sheep", "pig", "hen"],
        "colours": COLOURS,
        "toys": TOYS,
        "fruits": ["apple", "pear", "plum", "banana", "orange", "cherry", "lemon"],
    }
    kind = rng.choice(list(kinds))
    count = rng.randint(2, 4)
    items = rng.sample(list(kinds[kind]), count)
    answer = listed(items if kind == "colours" else [f"a {item}" for item in items])
    return f"[Name|Tell me|Give me|List] {NUMBERS[count]} {kind}.", f"{answer}."


def joke(rng: random.Random) -> Turn:
    question, answer = rng.choice(JOKES)
    return "Tell me a joke.|Do you know a joke?|Make me laugh.", f"{question} {answer}"


def request(rng: random.Random) -> Turn:
    """A story that was asked for."""
    text, fields = story(rng)
    about = rng.choice(
        (
            "",
            "",
            " about a {kind}",
            " about a {kind} named {name}",
            " about {name}",
            " about {topic}",
            " about {name} and {fname}",
            " about a {trait} {kind}",
        )
    )
    asked = (
        "[Tell me|Please tell me|Can you tell me|Write|I want to hear] a [short |little |]story" + about + "[.|.|!|]"
    )
    return asked.format_map(Capitals(fields)), text


def unknown(rng: random.Random) -> Turn:
    return rng.choice(UNKNOWN), "I am sorry, I do not know that. I only know little stories and small facts."


SKILLS = {
    greeting: 2, about_me: 1, animal_question: 5, comparison: 2, fact_question: 6, feeling: 1, calendar: 1.5,
    numbers_question: 5, reading_question: 3, repeating: 3, naming: 1.5, joke: 1, unknown: 1,
}  # fmt: skip
SYSTEM = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You tell stories to children.",
    "You are a [kind|patient] teacher.",
    "Answer [politely|in short sentences|in simple words].",
)


def answered(rng: random.Random, turn: Turn) -> Iterator[tuple[str, str]]:
    """The two messages of a turn; `|` separates alternatives in them. Some questions are typed carelessly."""
    question, answer = (expand(rng, f"[{text}]") for text in turn)
    if rng.random() < 0.15:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip(" ?.!")
    yield "user", question
    yield "assistant", answer


def dialogue(rng: random.Random) -> Document:
    """One to four turns, at times after a system message."""
    messages: list[tuple[str, str]] = []
    if rng.random() < 0.15:
        messages.append(("system", expand(rng, rng.choice(SYSTEM))))
    if rng.random() < 0.3:
        turns = [request(rng)]
    else:
        skills = rng.choices(list(SKILLS), list(SKILLS.values()), k=rng.choice((1, 1, 2, 3)))
        turns = [skill(rng) for skill in skills]
    if rng.random() < 0.15:
        turns.insert(0, greeting(rng))
    if rng.random() < 0.2:
        turns.append(farewell(rng))
    for turn in turns:
        messages += answered(rng, turn)
    return Document(tuple(messages))


def document(rng: random.Random) -> Document:
    """A story, facts, or a dialogue."""
    which = rng.random()
    if which < 0.5:
        return dialogue(rng)
    if which < 0.86:
        text = story(rng)[0]
    else:
        text = rng.choice((animal_fact, mixed_facts, self_introduction))(rng)
    return Document((("", text),))


def documents(seed: int) -> Iterator[Document]:
    """Endless documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield document(rng)


def main(argv) -> None:
    count = int(argv[1]) if len(argv) > 1 else 20
    for _, made in zip(range(count), documents(seed=0)):
        for role, text in made.messages:
            print(f"{role}: {text}" if role else text)
        print()


if __name__ == "__main__":
    app.run(main)
