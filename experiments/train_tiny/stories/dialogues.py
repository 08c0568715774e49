"""Questions and their answers, and dialogues of them."""

import random
from collections.abc import Iterator

from experiments.train_tiny.stories.facts import (
    ADVICE,
    ANIMALS,
    CAPITALS,
    DAYS,
    FEELINGS,
    HELPERS,
    JOKES,
    MONTHS,
    OPPOSITES,
    REASONS,
    RHYMES,
    SEASONS,
    THING_COLOURS,
    UNKNOWN,
    listed,
)
from experiments.train_tiny.stories.grammar import Capitals, draw, expand
from experiments.train_tiny.stories.stories import story
from experiments.train_tiny.stories.world import BOYS, COLOURS, FOODS, GIRLS, NUMBERS, PET_NAMES, PLACES, SPOTS, TOYS

Turn = tuple[str, str]
"""A question and its answer."""
Message = tuple[str, str]
"""A role and a text."""


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


def answered(rng: random.Random, turn: Turn) -> Iterator[Message]:
    """The two messages of a turn; `|` separates alternatives in them. Some questions are typed carelessly."""
    question, answer = (expand(rng, f"[{text}]") for text in turn)
    if rng.random() < 0.15:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip(" ?.!")
    yield "user", question
    yield "assistant", answer


def dialogue(rng: random.Random) -> tuple[Message, ...]:
    """One to four turns, at times after a system message."""
    messages: list[Message] = []
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
    return tuple(messages)
