"""What there is in the stories and who: names, things, places, and pairs of characters."""

import dataclasses
import random

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
