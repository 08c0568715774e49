"""Stories: plots, and who lives through them."""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from experiments.train_tiny.stories.grammar import Fields, draw, expand
from experiments.train_tiny.stories.world import (
    COLOURS,
    FAMILY,
    FOODS,
    NUMBERS,
    PLACES,
    SPOTS,
    TOYS,
    TRAITS,
    TREASURES,
    WEATHER,
    pair,
)

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
