"""The words of the made-up children's stories that corpus.py puts together: characters, wishes, obstacles, helpers, endings.

How a template is read: [a|b] is one of its choices (an empty one is allowed), {slot} a word of the story, {Slot} the same with
a capital, {a slot} with its article, <...> speech in quotes. The hero has {n} name, {k} kind, {he} {him} {his} {himself}; the
helper {m}, {mk}, {mhe}, {mhim}, {mhis}; a third character {f}, {fk}, {fhe}, {fhim}. A wish has slots of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SHE_NAMES = (
    "Lily Mia Anna Lucy Emma Sara Nina Ella Zoe Ruby Molly Daisy Rosie Amy Kate Lola Jane Bella Eva Ivy Maya Tilly Poppy Nora "
    "Alice Clara Hanna Luna Betty Susie"
).split()
HE_NAMES = (
    "Tom Ben Max Sam Tim Jack Leo Bob Finn Billy Oscar Toby Pip Dan Noah Sunny Fred Hugo Otto Peter Charlie Henry Joe Theo "
    "Milo "
    "Adam Luke Rob Teddy Felix"
).split()

FARM_HOMES = "[on a small farm|on a farm near the forest|in a small house with a garden|near a quiet village]"
FOREST_HOMES = "[in the green forest|at the edge of the forest|near a big old oak tree|under a green hill]"
POND_HOMES = "[by a quiet pond|near a green pond|by a pond full of lilies]"
CHILD_HOMES = (
    "[in a small house by the sea|in a little town|in a house with a red door|in a village near the forest|in a small house "
    "on a hill"
    "|in a yellow house with a garden]"
)
# Where a hero of each kind lives, and how often the kind is drawn.
HEROES = {
    "girl": (CHILD_HOMES, 5),
    "boy": (CHILD_HOMES, 5),
    "dog": (FARM_HOMES, 3),
    "cat": (FARM_HOMES, 3),
    "rabbit": (FOREST_HOMES, 2),
    "bear": (FOREST_HOMES, 2),
    "bird": ("[in a nest in an old tree|in the green forest|in a tree near a quiet village]", 2),
    "mouse": ("[under an old house|in a tiny house under a tree|on a small farm]", 2),
    "fox": (FOREST_HOMES, 2),
    "frog": (POND_HOMES, 2),
    "duck": (POND_HOMES, 2),
    "turtle": (POND_HOMES, 1),
    "squirrel": (FOREST_HOMES, 1),
    "pig": (FARM_HOMES, 1),
    "hedgehog": (FOREST_HOMES, 1),
    "lamb": (FARM_HOMES, 1),
}
CHILDREN = "girl boy"
GROWN = "farmer owl horse cow"  # helpers that may be called old
FLYERS = "bird owl crow"

LOVES = (
    "run in the tall grass|look at the clouds|sing little songs|play in the garden|look for pretty stones|sit in the warm sun"
    "|smell the flowers|listen to stories|play outside|chase butterflies|eat sweet apples|count the stars at night"
).split("|")

LEADS = (
    "[One day|One morning|One sunny day|One sunny morning|One fine day|One bright morning|One afternoon|Early one "
    "morning|One quiet day]"
)
DAY_LEADS = "[That day|That morning|Right after breakfast|After breakfast]"

# Two parts of a first paragraph each: the sentence that brings the hero in, and whether it already tells of one certain day.
OPENINGS = (
    ("Once upon a time, there was {a adj} little {k} named {n}. {He} lived {home}.", False, 6),
    ("Once upon a time, there was a little {k} named {n}. {He} was very {adj}, and {he} lived {home}.", False, 4),
    ("Once upon a time, {a adj} little {k} [named|called] {n} lived {home}.", False, 4),
    ("Once upon a time, {home}, there lived {a adj} little {k}. {His} name was {n}.", False, 3),
    ("There was once a little {k} [named|called] {n}. {He} was {adj} and lived {home}.", False, 4),
    ("There was once {a adj} {k} named {n}, who lived {home}.", False, 4),
    ("{n} was {a adj} little {k} who lived {home}.", False, 5),
    ("{n} was a little {k}. {He} lived {home}, and everyone knew that {he} was very {adj}.", False, 4),
    (
        "{n} was a little {k} with [a kind face|bright eyes|big brown eyes|a big smile]. {He} was {adj}, and {he} lived "
        "{home}.",
        False,
        3,
    ),
    ("{Home} lived {a adj} little {k} named {n}.", False, 3),
    ("{Home}, there was {a adj} little {k} named {n}.", False, 2),
    ("Long ago, {a adj} little {k} named {n} lived {home}.", False, 2),
    ("The little {k} was called {n}. {He} lived {home}, and {he} was very {adj}.", False, 4),
    ("The little {k} lived {home}. {His} name was {n}, and {he} was very {adj}.", False, 6),
    ("The little {k} woke up early. {His} name was {n}, and everyone knew that {he} was very {adj}.", True, 4),
    ("One day, {n} [woke up early|woke up with a smile]. {n} was {a adj} little {k} who lived {home}.", True, 5),
    (
        "One day, {n} the little {k} [woke up early|went outside|looked out at the blue sky]. {He} was {a adj} {k} who lived "
        "{home}.",
        True,
        5,
    ),
    (
        "It was a sunny day. {A adj} little {k} named {n} [sat outside|came out of {his} home|looked up at the blue sky].",
        True,
        4,
    ),
    ("It was a sunny day, and the birds were singing. {n}, {a adj} little {k}, [woke up|opened {his} eyes].", True, 3),
    ("It was a sunny day. {n} was {a adj} little {k} who lived {home}, and {he} was [already awake|ready to play].", True, 3),
)


@dataclass(frozen=True)
class Nature:
    """A side of the hero's character: what it is like, what it makes the hero do in trouble, how the hero speaks, what it
    becomes."""

    habit: str
    trouble: str
    says: str
    after: str
    thankful: bool = False  # `after` is for a hero who was helped


NATURES = {
    "shy": Nature(
        "{He} [did not talk much|spoke very softly|often hid when somebody came].",
        "{n} [looked at the ground and said nothing|sat down and said nothing].",
        "[said {n} in a small voice|whispered {n}]",
        "[From that day on|After that], {n} was not so shy any more.",
    ),
    "brave": Nature(
        "{He} was [not afraid of many things|never afraid of loud noises].",
        "{n} did not cry. {He} took a deep breath and looked around.",
        "[said {n}|answered {n}]",
        "{n} knew now that even the brave need a friend.",
        thankful=True,
    ),
    "curious": Nature(
        "{He} [asked questions all day|wanted to know everything].",
        "<What can I do now?> {n} asked {himself}.",
        "[said {n}|answered {n}]",
        "That night, {n} still had a hundred questions.",
    ),
    "kind": Nature(
        "{He} [had a nice word for everyone|always shared {his} food].",
        "{n} was sad, but {he} was not angry.",
        "[said {n}|said {n} with a sad smile]",
        "<[Tomorrow|Next time], I will help somebody, too,> thought {n}.",
        thankful=True,
    ),
    "lazy": Nature(
        "{He} liked to sleep [late|all day].",
        "{n} was already so tired. {He} [let out a long sigh|wanted to lie down and sleep].",
        "[said {n}|said {n} with a sigh]",
        "That night, the lazy little {k} slept very well.",
    ),
    "grumpy": Nature(
        "{He} [did not smile often|did not laugh often].",
        "<This is not fair!> said {n}.",
        "said {n} [in a grumpy voice|with an angry face]",
        "{n} smiled and smiled, and {he} was not grumpy any more.",
    ),
    "clever": Nature(
        "{He} [often had good ideas|liked to think].",
        "{n} thought and thought, but this time {he} had no idea.",
        "[said {n}|answered {n}]",
        "<The best idea is to have a friend,> thought {n}.",
        thankful=True,
    ),
    "cheerful": Nature(
        "{He} [laughed a lot|smiled all day].",
        "{n} tried to smile, but it was hard.",
        "[said {n}|answered {n}]",
        "And {n} was the happiest {k} of all.",
    ),
    "careful": Nature(
        "{He} [did everything slowly and well|always looked before {he} jumped].",
        "{n} thought about it for a long time, but {he} did not know what to do.",
        "[said {n}|answered {n} slowly]",
        "{n} [went to bed|fell asleep] with a warm feeling that night.",
    ),
    "proud": Nature(
        "{He} liked to do everything alone.",
        "<I do not need any help,> said {n}. {He} tried, but it did not work.",
        "[said {n} at last|said {n} after a while]",
        "{n} was not too proud to ask for help any more.",
        thankful=True,
    ),
    "silly": Nature(
        "{He} [liked to make jokes|made everyone laugh].",
        "Even {n} could not laugh now.",
        "[said {n}|answered {n}]",
        "Then {n} told a silly joke, and {he} laughed at it {himself}.",
    ),
}

# What a helper is like; "old" only for those of GROWN.
HELPER_NATURES = "kind friendly gentle clever cheerful helpful".split()

LESSONS = {
    "help": "[It is good to have a friend who helps.|With a little help, hard things are easy.|{n} would never forget {m}.|"
    "<Friends help each other,> thought {n}.|It was the best day of the week.|||]",
    "try": "[{n} had learned to try again.|If you try again and again, you get better.|{n} had learned that it takes time to "
    "learn.|"
    "<I am glad that I did not give up,> thought {n}.|||]",
    "kind": "[It is good to be kind.|A little kindness goes a long way.|<A kind word can do a lot,> thought {n}.|||]",
    "share": "[It is nice to share.|Things are more fun when you share them.|It is good to be kind.|A little kindness goes a "
    "long way.|||]",
    "friend": "[A good friend is better than any toy.|From that day on, they met every day.|And they were friends for a long, "
    "long time.|"
    "It is good to have a friend.||]",
}


@dataclass(frozen=True)
class Helper:
    """Who can help (`kinds`), and how; `to` names the only hero kinds it can do this for (all, when empty)."""

    kinds: str
    text: str
    to: str = ""


@dataclass(frozen=True)
class Obstacle:
    """What is in the way. With a `plea` the helper comes by and asks; without, the helper's text tells how they met."""

    name: str
    text: str
    helpers: tuple[Helper, ...]
    plea: str = ""
    not_for: str = ""
    not_natures: str = ""
    not_wishes: str = ""
    avoid: str = ""  # a word that what the hero loves must not have
    lesson: str = "help"
    quiet: bool = False  # the text already tells what the hero does in trouble


@dataclass(frozen=True)
class Wish:
    """What the hero wants, and how it ends. `slots` are chosen once in a story, in their order; `avoid` as in Obstacle."""

    name: str
    start: str
    end: str
    slots: dict[str, str] = field(default_factory=dict)
    not_for: str = ""
    avoid: str = ""


@dataclass(frozen=True)
class Family:
    """Wishes that may meet any of these obstacles."""

    name: str
    wishes: tuple[Wish, ...]
    obstacles: tuple[Obstacle, ...]


JOURNEY = Family(
    "journey",
    (
        Wish(
            "grandma",
            "{n} wanted to visit {his} grandma. {He} put some {gift} in a basket and [set off|started to walk].",
            "[Soon|At last], {n} was at the door. Grandma gave {him} a big hug, and they [ate the {gift} together|had the "
            "{gift} with warm milk].",
            {"gift": "[cookies|small cakes|honey bread|red apples]"},
        ),
        Wish(
            "berries",
            "{n} wanted to pick {fruit} in the big meadow. {He} took {his} basket and [set off|went down the path].",
            "[Soon|At last], {n} was in the meadow. There were {fruit} everywhere! {He} picked and picked until the basket was "
            "full, and in the evening there was a sweet pie for everyone.",
            {"fruit": "[blueberries|strawberries|blackberries]"},
        ),
        Wish(
            "sea",
            "{n} wanted to see the sea. {He} had [heard so much about it|dreamed about it all winter], and so {he} set off "
            "down the path.",
            "[At last|In the evening], {n} stood in the soft sand. The sea was [big and blue|blue and very big], and the "
            "waves sang a song. "
            "<It is so beautiful!> [said|cried] {n}.",
            avoid="sea",
        ),
        Wish(
            "party",
            "{n} was on the way to a birthday party. {His} friend {f} the {fk} was having a birthday, and {n} had {a present} "
            "for {fhim}.",
            "[Soon|At last], {n} was at the party. {f} loved the {present}. They [danced and ate cake|played games and ate "
            "cake] until "
            "the moon came up.",
            {"present": "[yellow balloon|little drum|blue cup|red hat|shiny bell|big book|orange balloon]"},
        ),
        Wish(
            "flower",
            "{n} wanted to find {a flower} for {his} mother. Such flowers grew only [far away by the old mill|on the far side "
            "of the forest], "
            "so {he} set off.",
            "[Soon|At last], {n} found {a flower}. {He} carried it home with great care. <For me? [How lovely|How pretty]!> "
            "said "
            "{his} mother, and she gave {him} a kiss.",
            {"flower": "[blue flower|white rose|yellow flower|purple flower|red rose]"},
        ),
        Wish(
            "treasure",
            "{n} found an old map. It showed [a treasure under a big stone|a treasure under an old apple tree], and {n} "
            "wanted to find it. "
            "{He} took {his} bag and set off.",
            "[Soon|At last], {n} came to the right place and began to dig. There was a little box full of {treasure}! On the "
            "way "
            "home, {n} gave half of it to {m}.",
            {"treasure": "[gold coins|shiny stones|pretty shells|colored glass]"},
        ),
        Wish(
            "market",
            "{n} wanted to buy {a ware} at the market in the town. {He} put three coins in {his} bag and [set off|started to "
            "walk].",
            "[Soon|At last], {n} was at the market. {He} gave the three coins to the baker and got the {ware}. [It was just "
            "what "
            "{he} "
            "wanted|How happy {he} was]!",
            {"ware": "[loaf of bread|sweet cake|apple pie|big cookie]"},
        ),
        Wish(
            "sick friend",
            "{n} heard that {f} the {fk} was sick. <I will bring {fhim} some {food},> said {n}. {He} [took the pot and set "
            "off|set off at once].",
            "[Soon|At last], {n} was at {f}'s bed. {f} ate all of the {food}. <I feel [much better|better already]!> said {f}. "
            "That made {n} very happy.",
            {"food": "[hot soup|carrot soup|tomato soup|mushroom soup]"},
        ),
        Wish(
            "fair",
            "{n} wanted to go to the big fair. There would be music, and {good}! {He} [set off|left] right away.",
            "[Soon|At last], {n} could hear the music. {He} saw the lights, and there was {good}, too. {n} [danced until "
            "{his} feet were "
            "tired|stayed until the last song].",
            {"good": "[hot apple pie|sweet popcorn|pink ice cream|a puppet show]"},
        ),
        Wish(
            "letter",
            "{n} wanted to bring a letter to {his} friend {f} the {fk}, who lived far away. {He} put it in {his} bag and [set "
            "off|started to walk].",
            "[Soon|At last], {n} knocked at {f}'s door. {f} opened the letter and read: <You are my best friend.> {f} "
            "[hugged {n} for a long time|was so happy that {fhe} jumped up and down].",
        ),
        Wish(
            "waterfall",
            "{n} wanted to see the [tall|great] waterfall in the hills. {He} packed some {lunch} and [set off|started to "
            "walk].",
            "[Soon|At last], {n} stood before the waterfall. A rainbow hung over the water. {n} ate the {lunch} and "
            "[looked and looked|looked at all the colors].",
            {"lunch": "[bread and cheese|sandwiches|nuts|sweet pears]"},
        ),
    ),
    (
        Obstacle(
            "river",
            "But [soon|after a while] the path ended at a [wide|deep|wild] river, and there was no bridge.",
            (
                Helper("horse", "{m} was big and strong. {n} climbed on {mhis} back, and {m} carried {him} through the water."),
                Helper(
                    "beaver",
                    "{m} bit through a thin tree with {mhis} sharp teeth. The tree fell over the river, and {n} walked across "
                    "it.",
                ),
                Helper("farmer", "{m} had a little boat. {n} sat down in it, and {m} rowed {him} to the other side."),
                Helper(
                    "swan goose",
                    "{n} sat down on {mhis} soft white back, and {m} swam across the river.",
                    "mouse hedgehog squirrel",
                ),
                Helper(
                    "deer", "{m} knew a place with flat stones in the water. {n} jumped from stone to stone and got across."
                ),
            ),
            "[I cannot get across the river|The river is too deep for me|There is no bridge, and I cannot swim so far]",
            not_for="duck frog turtle bird",
        ),
        Obstacle(
            "dark",
            "But the path went into a thick forest. It was so dark there that {n} [could not see the path|could see nothing "
            "at all].",
            (
                Helper(
                    "owl",
                    "{m} could see well in the dark. {mHe} flew ahead and called, and {n} followed {mhis} voice through the "
                    "trees.",
                ),
                Helper(
                    "firefly",
                    "{m} made {mhis} light shine as bright as {mhe} could. {n} followed the little light through the trees.",
                ),
                Helper("farmer", "{m} had a lamp. {mHe} held it up high and walked with {n} until they were out of the trees."),
                Helper(
                    "cat",
                    "{m} could see well in the dark. {mHe} walked in front, and {n} stayed close behind {mhim} all the way.",
                ),
                Helper(
                    "mole",
                    "{m} lived there and did not need any light. {mHe} took {n} by the hand and led {him} out of the trees.",
                    "girl boy",
                ),
            ),
            "[It is too dark for me|I cannot see the path|It is so dark, and I am afraid]",
            not_for="cat",
            not_natures="brave",
            avoid="stars",
        ),
        Obstacle(
            "rain",
            "But [soon|after a while] dark clouds came, and it began to rain [hard|very hard]. {n} was wet and cold.",
            (
                Helper(
                    "girl boy",
                    "{m} had a big umbrella. There was room for two under it, and they walked on together until the rain "
                    "stopped.",
                ),
                Helper(
                    "bear fox", "{m} had a dry cave close by. They sat there together and told stories until the rain stopped."
                ),
                Helper(
                    "farmer", "{m} had a dry barn close by. {n} sat in the warm hay and waited there until the rain stopped."
                ),
                Helper(
                    "frog",
                    "{m} liked the rain. {mHe} gave {n} a leaf that was as big as an umbrella, and under the leaf it was dry.",
                    "mouse",
                ),
                Helper(
                    "squirrel",
                    "{m} had a dry hole in an old tree. They sat inside and ate nuts until the rain stopped.",
                    "mouse bird hedgehog",
                ),
                Helper("sheep", "{m} had thick, warm wool. {n} sat close to {mhim} under a big tree until the rain stopped."),
            ),
            "[I am so wet and cold|I am wet, and I cannot go on in this rain|The rain does not stop]",
            not_for="duck frog turtle",
            not_natures="proud",
        ),
        Obstacle(
            "lost",
            "But [soon|after a while] there were three paths, and {n} [did not know which one was right|took the wrong one]. "
            "{He} was lost.",
            (
                Helper(
                    "crow bird", "{m} flew high up and looked around. Then {mhe} came down again and showed {n} the right way."
                ),
                Helper(
                    "dog", "{m} had a very good nose. {mHe} smelled the ground, and soon {mhe} found the right path for {n}."
                ),
                Helper("deer fox", "{m} knew every path in the forest. {mHe} walked with {n} and showed {him} the right way."),
                Helper("girl boy", "{m} had a map. They looked at it together, and there was the right way!", CHILDREN),
                Helper("mouse", "{m} pointed to an old sign in the grass. It showed the right way."),
            ),
            "[I am lost|I do not know the way|I cannot find the right path]",
            not_for="bird dog",
        ),
        Obstacle(
            "wall",
            "But [soon|after a while] there was a high stone wall, and it was much too high for {n}.",
            (
                Helper(
                    "horse cow", "{m} stood close to the wall. {n} climbed on {mhis} back, and from there {he} could get over."
                ),
                Helper("farmer", "{m} had a key to the little gate in the wall. {mHe} opened it, and {n} walked through."),
                Helper(
                    "mole",
                    "{m} was good at digging. {mHe} dug a tunnel under the wall, and {n} went through it.",
                    "mouse frog hedgehog rabbit",
                ),
                Helper(
                    "rabbit",
                    "{m} knew a hole under the wall, behind a bush. {n} went through it, and there was the path again.",
                ),
                Helper("crow", "{m} flew along the wall and found an open gate. {n} ran to it and went through."),
            ),
            "[I cannot get over this wall|The wall is too high for me]",
            not_for="bird cat squirrel",
        ),
        Obstacle(
            "tree",
            "But [soon|after a while] a big tree lay across the path. It had fallen in a storm, and {n} could not get past it.",
            (
                Helper("bear", "{m} was very strong. {mHe} pushed and pushed, and the tree rolled away."),
                Helper(
                    "horse cow", "They put a rope around the tree. {m} pulled with all {mhis} strength, and the path was free."
                ),
                Helper(
                    "beaver",
                    "{m} bit through the wood with {mhis} sharp teeth. Soon there was a gap, and {n} could walk through.",
                ),
                Helper("farmer", "{m} had a saw. {mHe} cut the tree in two, and they rolled the wood away together."),
            ),
            "[This tree is too heavy for me|The tree is in my way, and I cannot move it]",
            not_for="bird squirrel mouse cat bear",
        ),
        Obstacle(
            "mud",
            "But the path was wet, and {n} stepped into deep mud. {He} pulled and pulled, but {his} [feet were stuck|legs "
            "were stuck].",
            (
                Helper(
                    "horse cow", "{m} held out {mhis} long tail. {n} took it, {m} pulled, and with a loud plop {n} was free."
                ),
                Helper("girl boy", "{m} held out a long stick. {n} took it, {m} pulled, and with a loud plop {n} was free."),
                Helper("bear farmer", "{m} was very strong. {mHe} lifted {n} out of the mud and set {him} down on dry grass."),
                Helper(
                    "goat dog", "{m} found a rope and threw one end to {n}. Then {mhe} pulled and pulled until {n} was free."
                ),
            ),
            "[I am stuck in the mud|I cannot get out of the mud]",
            not_for="pig frog duck bird turtle",
        ),
        Obstacle(
            "blocker",
            "But [soon|after a while] {he} came to a bridge. In the middle of it sat a grumpy {mk} named {m}. "
            "<[Go away|Nobody may cross my bridge]!> said {m}.",
            (
                Helper(
                    "goat goose dog",
                    "{n} did not run away. <Are you hungry?> {he} asked, and {he} gave {m} [some bread|a piece of bread]. {m} "
                    "ate it "
                    "all. <Nobody was ever so nice to me,> {mhe} said. <You may cross.>",
                ),
                Helper(
                    "bear badger dog",
                    "{n} looked at {mhim}. <Why are you so angry?> {he} asked. <There is a thorn in my foot,> said {m}. {n} "
                    "pulled it out "
                    "with great care. <Thank you! You may cross,> said {m}, and {mhe} smiled.",
                ),
                Helper(
                    "goat badger troll",
                    "{n} did not run away. <Are you alone here?> {he} asked. <Yes, always,> said {m}. <Then I will visit you "
                    "every week,> "
                    "said {n}. {m} smiled for the first time and let {him} cross.",
                ),
            ),
            not_for="duck frog turtle bird",
            not_natures="shy",
            lesson="kind",
        ),
    ),
)

TOY = Family(
    "toy",
    (
        Wish(
            "kite",
            "{n} got a new {color} kite. {He} took it to the [meadow|hill] and wanted to fly it high up in the sky.",
            "[Soon|Then] the {color} kite was up in the sky again. {n} and {m} [ran after it and laughed|flew it until the "
            "sun went down].",
            {
                "color": "[red|blue|yellow|green|orange|purple]",
                "toy": "{color} kite",
                "away": "the wind pulled the kite out of {his} hands",
            },
        ),
        Wish(
            "ball",
            "{n} got {a color} ball. {He} took it to the meadow and wanted to play with it [all day|until dinner].",
            "[Soon|Then] they played with the {color} ball together. {n} threw it, and {m} ran after it. "
            "[It was so much fun|They played until dinner].",
            {
                "color": "[red|blue|yellow|green|orange|purple]",
                "toy": "{color} ball",
                "away": "{he} threw the ball much too hard",
            },
        ),
        Wish(
            "hat",
            "{n} got a new {color} hat. {He} was so proud of it that {he} wanted to show it to everyone [in the village|at "
            "the market].",
            "{n} put the {color} hat back on. <It looks [lovely|wonderful] on you!> said {m}. {n} let {mhim} wear it, too, and "
            "it looked [funny|very fine].",
            {
                "color": "[red|blue|yellow|green|orange|purple]",
                "toy": "{color} hat",
                "away": "the wind took the hat from {his} head",
            },
        ),
        Wish(
            "plane",
            "{n} made {a color} paper plane. {He} took it outside and wanted to see how far it would fly.",
            "{n} threw the {color} plane again, and this time it flew [all the way to the gate|over the whole meadow]. {n} "
            "and {m} clapped.",
            {"color": "[red|blue|yellow|green|white]", "toy": "{color} plane", "away": "the plane flew much too far"},
        ),
        Wish(
            "scarf",
            "{n} got {a color} scarf. {His} grandma had made it, and {n} [took it everywhere|wanted to wear it all day]. {He} "
            "went for a walk with it.",
            "{n} put the {color} scarf around {his} neck. It was long, so it went around {m}'s neck, too. "
            "[They both laughed|That was warm and funny].",
            {"color": "[red|blue|yellow|green|orange|purple]", "toy": "{color} scarf", "away": "the wind took the scarf away"},
        ),
        Wish(
            "frisbee",
            "{n} got {a color} ring for {his} birthday. It was a ring to throw, and {n} wanted to [play with it|try it] at "
            "once. {He} ran outside.",
            "Then they stood far apart and threw the {color} ring to each other. {n} threw, and {m} caught it. "
            "[It was a lovely game|They played until dinner].",
            {
                "color": "[red|blue|yellow|green|orange|purple]",
                "toy": "{color} ring",
                "away": "{he} threw the ring much too high",
            },
        ),
    ),
    (
        Obstacle(
            "branch",
            "But {away}, and it landed on a high branch of a tall tree. {n} [jumped and jumped|stretched and stretched], but "
            "{he} could not reach it.",
            (
                Helper(
                    "bird crow",
                    "{m} flew up to the branch and pushed with {mhis} beak. Down came the {toy}, right in front of {n}.",
                ),
                Helper(
                    "squirrel cat",
                    "{m} climbed up the tree, quick as the wind, and pushed the {toy} off the branch. {n} caught it.",
                ),
                Helper("farmer", "{m} brought a long ladder. {mHe} climbed up, step by step, and came back with the {toy}."),
                Helper(
                    "giraffe", "{m} had a very long neck. {mHe} just stretched it a little and took the {toy} from the branch."
                ),
                Helper(
                    "horse",
                    "<Climb on my back,> said {m}. {n} stood on {mhis} back, and from there {he} could reach the {toy}.",
                ),
            ),
            "[My {toy} is up in the tree|I cannot reach my {toy}]",
            not_for="bird squirrel cat bear",
        ),
        Obstacle(
            "pond",
            "But {away}, and it fell into the middle of the pond. The water was [deep|cold and deep], and {n} could not "
            "[swim|get to it].",
            (
                Helper(
                    "duck swan goose",
                    "{m} swam out to the middle of the pond and pushed the {toy} back to the grass with {mhis} beak.",
                ),
                Helper(
                    "frog turtle",
                    "{m} jumped into the water and swam to the {toy}. {mHe} pushed it in front of {mhim} until it was back.",
                ),
                Helper(
                    "dog", "{m} jumped into the water with a big splash. Soon {mhe} swam back with the {toy} in {mhis} mouth."
                ),
                Helper("farmer", "{m} had a long stick. With it, {mhe} pulled the {toy} slowly back to the grass."),
            ),
            "[My {toy} is in the water|I cannot get my {toy} out of the pond]",
            not_for="duck frog turtle dog bear bird",
        ),
        Obstacle(
            "grass",
            "But {away}, and it was gone. {n} looked [here and there|everywhere], but the grass was too high. The {toy} was "
            "lost.",
            (
                Helper(
                    "dog fox",
                    "{m} put {mhis} nose to the ground and smelled here and there. Then {mhe} called out. {mHe} had found the "
                    "{toy}!",
                ),
                Helper(
                    "bird crow",
                    "{m} flew over the grass and looked down. <There it is!> {mhe} called, and {n} ran and found the {toy}.",
                ),
                Helper(
                    "mouse", "{m} ran through the grass on {mhis} tiny feet. <Over here!> {mhe} called. There lay the {toy}."
                ),
                Helper(
                    "girl boy", "They walked through the grass side by side. <I see something!> cried {m}. It was the {toy}!"
                ),
            ),
            "[I cannot find my {toy}|I have lost my {toy}]",
            not_for="bird dog",
        ),
        Obstacle(
            "roof",
            "But {away}, and it landed on the roof of the old barn. It was [far too high|much too high] for {n}.",
            (
                Helper(
                    "bird crow owl",
                    "{m} flew up to the roof and gave the {toy} a push. It slid down and fell right in front of {n}.",
                ),
                Helper(
                    "farmer", "{m} brought a ladder and leaned it on the wall. {mHe} climbed up to the roof and got the {toy}."
                ),
                Helper(
                    "cat squirrel",
                    "{m} climbed up to the roof without a sound. {mHe} pushed the {toy} over the edge, and {n} caught it.",
                ),
            ),
            "[My {toy} is up on the roof|I cannot get my {toy} down from the roof]",
            not_for="bird squirrel cat",
        ),
        Obstacle(
            "thorns",
            "But {away}, and it landed in the middle of a bush with [long|sharp] thorns. {n} tried to reach it, but it hurt.",
            (
                Helper(
                    "mouse",
                    "{m} was so small that the thorns did not hurt {mhim}. {mHe} ran under them and pushed the {toy} out.",
                ),
                Helper(
                    "hedgehog",
                    "{m} was not afraid of thorns. <I have more of them than this bush,> {mhe} said, and {mhe} brought out "
                    "the {toy}.",
                ),
                Helper("farmer", "{m} had thick gloves. {mHe} pushed the thorns to one side and took out the {toy}."),
                Helper(
                    "goat",
                    "{m} liked to eat leaves, even with thorns. {mHe} ate a path into the bush, and {n} took out the {toy}.",
                ),
            ),
            "[My {toy} is in the thorns|I cannot get my {toy} out of the bush]",
            not_for="mouse hedgehog bird",
        ),
        Obstacle(
            "keeper",
            "But {away}, and it landed right in front of a grumpy {mk} named {m}. <[I found it. It is mine now|Now it is "
            "mine]!> said {m}.",
            (
                Helper(
                    "dog fox goose goat",
                    "{n} was [angry|sad], but {he} took a deep breath. <You never have anyone to play with, do you?> {he} "
                    "asked. {m} shook "
                    "{mhis} head. <Then come and play with me,> said {n}. So {m} gave back the {toy}.",
                ),
                Helper(
                    "bear crow pig",
                    "{n} thought about it. Then {he} took {swap} out of {his} bag. <I will give you this,> {he} said, <and you "
                    "give me the {toy}.> {m} was happy with that.",
                ),
                Helper(
                    "girl boy",
                    "{n} began to cry. When {m} saw that, {mhe} was sorry. <I did not want to make you sad,> {mhe} said, and "
                    "{mhe} "
                    "gave back the {toy}. <Can I play, too?> <Yes!> said {n}.",
                ),
            ),
            not_natures="brave",
            lesson="share",
        ),
    ),
)
MEETING = (
    "[Just then|At that moment|A little later|Not long after that], {a madj} {mk} named {m} {came}. "
    "<[What is wrong|What is the matter|Why do you look so sad|What happened]?> asked {m}."
)
OFFER = "<[I can help you|Let me help you|Do not worry, I can help|Maybe I can help]!> said {m}."
THANKS = "[ <Thank you!> said {n}.| <Thank you so much, {m}!> said {n}.||]"
# What the hero may offer to the one who keeps the toy.
SWAP = "[a sweet pear|a red apple|a jar of honey|three nuts]"

LEARN = Family(
    "learn",
    (
        Wish(
            "swim",
            "{n} wanted to learn to swim. {His} friends played in the pond every day, and {he} wanted to play there, too.",
            "[One week later|At the end of summer], {n} swam across the whole pond. {His} friends clapped, and {m} was the "
            "proudest of all.",
            {
                "skill": "swim",
                "fail": "{He} kicked and splashed, but {he} always went under.",
                "fear": "The water looked so deep and so cold.",
                "lesson": "{m} held {him} up in the flat water. <Move your legs slowly,> {mhe} said. <One, two, one, two.>",
                "teachers": "duck frog turtle swan goose",
            },
            not_for="duck frog turtle bird",
        ),
        Wish(
            "bike",
            "{n} wanted to learn to ride a bike. {He} had [an old red bike|a shiny green bike|a little blue bike], and {he} "
            "pushed it out to the path.",
            "[A week later|In the end], {n} rode all the way [to the school|around the park] and back. The wind was in {his} "
            "face, and {he} "
            "[felt as free as a bird|laughed out loud].",
            {
                "skill": "ride a bike",
                "fail": "The bike went left, then right, and then {he} fell into the grass.",
                "fear": "The bike was so high, and the ground was so hard.",
                "lesson": "{m} ran beside {him} and held the bike. <Look ahead, not down,> {mhe} said. Then {m} let go.",
                "teachers": "girl boy farmer teacher",
            },
            not_for="dog cat rabbit bear bird mouse fox frog duck turtle squirrel pig hedgehog lamb",
        ),
        Wish(
            "sing",
            "{n} wanted to learn to sing. There was [a big show|a concert] in the village soon, and {he} wanted to sing for "
            "everyone.",
            "On the evening of the show, {n} sang [a song about the moon|a song about spring]. It was so [lovely|sweet] that "
            "everyone clapped.",
            {
                "skill": "sing",
                "fail": "The notes were too high or too low, and it sounded like an old door.",
                "fear": "What if everyone looked at {him} and laughed?",
                "lesson": "{m} sang one note, and {n} sang it, too. <Now close your eyes and listen,> said {m}. They sang it "
                "again.",
                "teachers": "bird frog girl boy teacher",
            },
            not_for="bird",
            avoid="sing",
        ),
        Wish(
            "dance",
            "{n} wanted to learn to dance. There was a [summer|spring] party in the village soon, and {he} wanted to dance "
            "there.",
            "At the party, {n} danced [all evening|to every song]. {m} danced, too, and everyone clapped for the two of them.",
            {
                "skill": "dance",
                "fail": "{He} turned the wrong way, and {his} feet got mixed up.",
                "fear": "What if {he} fell down in front of everyone?",
                "lesson": "{m} showed {him} one small step. <Listen to the drum,> {mhe} said. <One step, one turn, one jump.>",
                "teachers": "rabbit goat girl boy fox teacher",
            },
        ),
        Wish(
            "climb",
            "{n} wanted to learn to climb. At the top of the old apple tree, there were [red|sweet yellow] apples, and {he} "
            "wanted to pick one.",
            "[The next day|In the end], {n} sat at the very top of the tree with {m}. The apples were [sweet|the best apples "
            "of all], and they "
            "could see the whole valley.",
            {
                "skill": "climb",
                "fail": "{He} got up a little way and then slid down again.",
                "fear": "The tree was so tall, and the branches moved in the wind.",
                "lesson": "{m} climbed in front of {him}. <Hold on well, and take one branch at a time,> {mhe} said.",
                "teachers": "squirrel cat monkey",
            },
            not_for="cat squirrel bird duck frog turtle lamb pig hedgehog",
            avoid="apples",
        ),
        Wish(
            "paint",
            "{n} wanted to learn to paint. {He} wanted to make a picture [of {his} mother|of the sunset|of the garden] to "
            "hang on the wall.",
            "[In the evening|In the end], the picture was ready. It was [bright and full of color|full of warm colors]. {His} "
            "mother "
            "put it up on the wall.",
            {
                "skill": "paint",
                "fail": "All the colors ran together, and the picture was brown.",
                "fear": "What if {he} made a mistake? The paper was so white.",
                "lesson": "{m} gave {him} a small brush. <Start with one color,> {mhe} said. <Let it dry, and then take the "
                "next.>",
                "teachers": "girl boy fox owl teacher",
            },
        ),
        Wish(
            "read",
            "{n} wanted to learn to read. {He} had a book with [a dragon|a ship|a castle] on it, and {he} wanted to know the "
            "story inside.",
            "[Every day it got better|Day by day it got better]. In the end, {n} read the whole book to {his} [little "
            "brother|little sister] at bedtime.",
            {
                "skill": "read",
                "fail": "{He} looked at the first page, but all the words looked the same.",
                "fear": "The book was so thick, and the words were so long.",
                "lesson": "{m} sat down beside {him} and opened the book. <Say each letter out loud,> {mhe} said. They read "
                "one short word.",
                "teachers": "owl girl boy teacher mouse",
            },
            avoid="stories",
        ),
        Wish(
            "skate",
            "{n} wanted to learn to skate. It was winter, and the ice on the lake was [thick and safe|shiny and thick].",
            "[Before the winter was over|At the end of winter], {n} could skate in a big circle. {n} and {m} skated side by "
            "side, and "
            "the snow fell softly.",
            {
                "skill": "skate",
                "fail": "{His} feet went to the left and to the right, and {he} sat down hard on the ice.",
                "fear": "The ice was so hard and so smooth.",
                "lesson": "{m} gave {him} a chair to push over the ice. <Small steps first,> {mhe} said. <Then long ones.>",
                "teachers": "girl boy farmer teacher fox",
            },
            not_for="bird duck frog turtle hedgehog",
        ),
        Wish(
            "drum",
            "{n} wanted to learn to play the drum. {He} had [an old drum|a little drum] from {his} grandpa, and {he} wanted "
            "to play in the band.",
            "[In spring|A month later], {n} marched through the village with the band. Boom, boom, boom! {His} grandpa "
            "[waved|smiled] at {him}.",
            {
                "skill": "play the drum",
                "fail": "It was too fast, then too slow, and it was always too loud.",
                "fear": "The band was so good, and {he} was so small.",
                "lesson": "{m} clapped {mhis} hands: one, two, three, four. <Count with me,> {mhe} said. <Now play it softly.>",
                "teachers": "bear girl boy monkey teacher",
            },
        ),
    ),
    (
        Obstacle(
            "fear",
            "But {n} was afraid. {fear} <I will never dare to {skill},> {he} thought.",
            (
                Helper(
                    "",
                    "<I was afraid, too, when I was small,> said {m}. <[Let us try it together|We will do it step by step].> "
                    "{lesson} "
                    "{n} was still a little afraid, but {he} [did it|tried it]. It was not so bad!",
                ),
            ),
            "[I want to {skill}, but I am afraid|I am too afraid to {skill}]",
            not_natures="brave proud cheerful silly",
            lesson="try",
        ),
        Obstacle(
            "fail",
            "But it was hard. {fail} {n} tried [again|three times], and it was no better.",
            (
                Helper(
                    "",
                    "<[Nobody can do it the first time|Everyone must start small],> said {m}. {lesson} {n} tried again, and "
                    "this time it was "
                    "[a little better|much better].",
                ),
            ),
            "[I cannot {skill}|I will never learn to {skill}]",
            lesson="try",
        ),
        Obstacle(
            "laughed",
            "But it was hard. {fail} [Two big rabbits|Some big mice|Two crows] saw it and laughed. {n} [ran away|went away] "
            "and hid behind a tree.",
            (
                Helper(
                    "",
                    "<[Do not listen to them|Let them laugh],> said {m}. <Come, I will show you how to {skill}.> {lesson} "
                    "After that, nobody "
                    "laughed any more.",
                ),
            ),
            quiet=True,
            plea="[They laughed because I cannot {skill}|Everyone laughs when I try to {skill}]",
            not_natures="proud silly",
            not_for="rabbit mouse",
            lesson="try",
        ),
        Obstacle(
            "hurry",
            "But {n} wanted to be the best on the very first day. {fail} <[I give up|This is too hard]!> {he} cried.",
            (
                Helper(
                    "",
                    "<A tree does not grow in one day,> said {m}. <[Practice a little every day|Give it some time].> {lesson} "
                    "{n} came back "
                    "the next day, and the next, and the next.",
                ),
            ),
            quiet=True,
            plea="[I want to {skill} right now|It takes too long to learn to {skill}]",
            not_natures="shy careful kind lazy",
            lesson="try",
        ),
    ),
)

MAKE = Family(
    "make",
    (
        Wish(
            "cake",
            "{n} wanted to bake {a cake} for {his} mother's birthday. {He} [put a big bowl on the table|washed {his} hands "
            "and took a big bowl].",
            "The {cake} came out of the oven, and it smelled [wonderful|so good]. <Happy birthday!> said {n}. {His} mother "
            "gave {m} "
            "a piece, too.",
            {
                "cake": "[chocolate cake|honey cake|apple cake|carrot cake]",
                "work": "{cake}",
                "missing": "[flour|sugar|butter]",
                "heavy": "the bag of flour",
                "broke": "{he} dropped the bowl, and everything was on the floor",
            },
        ),
        Wish(
            "soup",
            "{n} wanted to cook a big pot of {soup}. It was for [all the neighbors|{his} whole family], because winter was "
            "coming.",
            "In the evening, the {soup} was ready. Everyone had a bowl, and {m} had two. [It was warm and good|Not a drop was "
            "left].",
            {
                "soup": "[tomato soup|carrot soup|pumpkin soup]",
                "work": "{soup}",
                "missing": "[salt|pepper|onions]",
                "heavy": "the big pot",
                "broke": "{he} bumped the table, and half of the soup ran over the floor",
            },
        ),
        Wish(
            "snowman",
            "{n} saw that snow had fallen in the night. {He} wanted to build [the biggest|a big] snowman in front of {his} "
            "home, so {he} went outside.",
            "[Soon|At last] the snowman was ready. It had {nose} for a nose and a smile made of stones. {n} and {m} danced "
            "around it.",
            {
                "nose": "[a carrot|a red pepper|a long pear]",
                "work": "snowman",
                "missing": "{nose} for the nose",
                "heavy": "the big ball of snow",
                "broke": "the head rolled down and broke in two",
            },
            not_for="frog turtle hedgehog",
        ),
        Wish(
            "castle",
            "{n} wanted to build a castle of sand on the beach. It should have {many} towers and [a deep ditch|a high wall].",
            "[Before evening|At last] the castle stood there with its {many} towers. {n} and {m} [put a little flag on "
            "top|played king and queen].",
            {
                "many": "[three|four|five]",
                "work": "castle",
                "missing": "[shells for the windows|a flag for the tower]",
                "heavy": "the bucket of wet sand",
                "broke": "a big wave came and washed the castle away",
            },
        ),
        Wish(
            "garden",
            "{n} wanted to plant a garden with {plants}. {He} had found a good place in the sun, and {he} [took a spade|began "
            "to dig].",
            "Then they waited. The rain came, the sun came, and in summer there were {plants} everywhere. {n} gave [the "
            "nicest|a basket full] "
            "to {m}.",
            {
                "plants": "[carrots|pumpkins|tomatoes|sunflowers]",
                "work": "garden",
                "missing": "seeds",
                "heavy": "a big stone in the ground",
                "broke": "the wind broke all the young plants",
            },
            not_for="bird",
        ),
        Wish(
            "house",
            "{n} wanted to build a [little|wooden] playhouse under the old tree. It should have a door and {windows}.",
            "[On the third day|At last] the playhouse was ready, with a door and {windows}. {n} and {m} sat inside, "
            "ate [cookies|apples] and told stories.",
            {
                "windows": "[two windows|a round window|three small windows]",
                "work": "playhouse",
                "missing": "[nails|paint]",
                "heavy": "the long board for the roof",
                "broke": "the walls fell down with a loud crash",
            },
            not_for="duck turtle",
        ),
        Wish(
            "boat",
            "{n} wanted to build a boat out of wood. It should be [red and white|blue and white], and {he} wanted to call it "
            "[Star|Moon|Sun].",
            "[A week later|At last] the boat was in the water, and it did not sink. {n} and {m} sailed around the lake and "
            "[waved at the fish|"
            "sang a sailor song].",
            {
                "work": "boat",
                "missing": "[nails|cloth for the sail]",
                "heavy": "the long board for the side",
                "broke": "the mast fell over and broke in two",
            },
            not_for="duck frog turtle bird",
        ),
    ),
    (
        Obstacle(
            "missing",
            "But then {n} stopped. {He} needed {missing}. {He} looked everywhere, but there was nothing to be found.",
            (
                Helper(
                    "girl boy farmer cow goat mouse fox pig bear",
                    "<[I have enough at home|At home I have more than I need],> said {m}. {mHe} ran home and came back with "
                    "{missing}. "
                    "Then {mhe} stayed to help with the {work}.",
                ),
            ),
            "[I need {missing}|I have everything but {missing}]",
            not_natures="proud",
        ),
        Obstacle(
            "heavy",
            "But {heavy} was [too heavy|much too heavy]. {n} pulled and pushed, but {he} could not move it.",
            (
                Helper(
                    "bear horse cow",
                    "{m} was very strong. For {mhim} it was as light as a feather, and soon they worked on the {work} "
                    "together.",
                ),
                Helper(
                    "girl boy dog goat farmer",
                    "<One, two, three!> called {m}. {n} pulled and {m} pushed, and slowly it moved. "
                    "Then they worked on the {work} together.",
                ),
                Helper(
                    "mouse",
                    "{m} was small, but {mhe} called {mhis} ten brothers. Together they could move it, and then they all "
                    "worked on the {work}.",
                    "mouse bird frog hedgehog squirrel lamb duck turtle rabbit",
                ),
            ),
            "[I cannot move {heavy}|It is too heavy for me]",
            not_for="bear",
        ),
        Obstacle(
            "broke",
            "[{n} worked hard all morning|It went well at first]. But then {broke}! All the work was for nothing.",
            (
                Helper(
                    "girl boy dog cat rabbit fox pig goat",
                    "<[Oh, that happens to everyone|It is not so bad],> said {m}. <We will start again, and this time there "
                    "are two of us.> "
                    "They cleaned up, and then they [worked side by side|sang as they worked].",
                ),
                Helper(
                    "owl farmer cow",
                    "<I have [made many mistakes|broken many things] in my life,> said {m}. <[The second time is always "
                    "better|You just begin again].> "
                    "{mHe} stayed, and they began again together.",
                ),
            ),
            "[It took so long, and now it is gone|Look, I must start again]",
            not_natures="proud",
            lesson="try",
        ),
        Obstacle(
            "alone",
            "<I can do it all alone,> said {n}. But there was so much to do, and [soon|at noon] {he} was so tired that {he} "
            "had to sit down.",
            (
                Helper(
                    "girl boy dog cat rabbit mouse goat pig fox bear",
                    "<[Why did you not ask me|Why do you work all alone]?> said {m}. <I like to help!> They shared the work, "
                    "and they told each "
                    "other jokes. Now it [went twice as fast|was twice as much fun].",
                ),
            ),
            "[I am so tired|It is too much for me]",
            quiet=True,
            not_natures="proud shy",
        ),
    ),
)

FRIEND = Family(
    "friend",
    tuple(
        Wish(
            game,
            start,
            "[Then|After that,] {n} and {m} {play} until {until}. "
            "<[See you tomorrow|Will you come again tomorrow]?> asked {m}. <Yes!> said {n}.",
            {
                "play": play,
                "until": "it was time for bed"
                if game == "stars"
                else "[the sun went down|it was time for dinner|the moon came up]",
            },
            avoid=avoid,
        )
        for game, start, play, avoid in (
            (
                "hide",
                "{n} wanted to play hide and seek. But {he} had nobody to play with. You cannot play it alone.",
                "played hide and seek",
                "",
            ),
            (
                "tea",
                "{n} wanted to have a tea party. There were two cups on the table, but there was nobody for the second cup.",
                "drank tea and ate little cakes",
                "",
            ),
            (
                "seesaw",
                "{n} found a new seesaw in the meadow. But a seesaw needs two, and {n} wanted a friend.",
                "went up and down on the seesaw",
                "",
            ),
            (
                "pirates",
                "{n} wanted to play pirates. {He} had a ship made of boxes, but a ship needs more than one pirate.",
                "played pirates",
                "",
            ),
            (
                "stars",
                "{n} wanted to look at the stars. But it was lonely to look at them without a friend.",
                "sat on the hill and looked at the stars",
                "stars",
            ),
            (
                "race",
                "{n} wanted to run a race. But {he} had no friend yet, and a race for one is no race.",
                "ran races",
                "run",
            ),
            (
                "band",
                "{n} found a flute and wanted to make music with a friend. But {he} had no friend yet.",
                "made music",
                "sing",
            ),
        )
    ),
    (
        Obstacle(
            "dares not",
            "Behind the fence, {n} saw {a madj} {mk} named {m}. {n} wanted to say hello, but the words [did not come|got "
            "stuck].",
            (
                Helper(
                    "girl boy dog cat rabbit fox pig",
                    "So {n} picked a flower and put it on the fence. The next day, there was [a shiny stone|a red apple|a "
                    "little note] in its place! "
                    "{n} looked up, and {m} smiled at {him}. <Hello,> said {n}. <Do you want to play with me?> <I was hoping "
                    "you would ask,> said {m}.",
                ),
                Helper(
                    "mouse squirrel hedgehog lamb",
                    "Then {n} saw that {m} was shy, too. {mHe} looked [at the ground|away] and said nothing. <If we are both "
                    "shy, one of us must "
                    "start,> thought {n}. <Hello,> {he} said. <Do you want to play with me?> {m} looked up and said yes.",
                ),
            ),
            not_natures="brave cheerful proud silly grumpy",
            lesson="friend",
        ),
        Obstacle(
            "says no",
            "[By the gate|Under a tree], {n} met a grumpy {mk} named {m}. <Do you want to be my friend?> asked {n}. <No,> "
            "said {m}. <Leave me alone.>",
            (
                Helper(
                    "dog bear goat badger",
                    "{n} went home and came back with [a warm blanket|a bowl of hot soup]. <You looked cold,> {he} said. {m} "
                    "did not know "
                    "what to say. Nobody had ever done that for {mhim}. <I am sorry,> said {m}. <Please stay.>",
                ),
                Helper(
                    "cat crow fox goose",
                    "{n} did not go away. <You look sad,> {he} said. {m} looked at the ground. <My best friend moved away,> "
                    "{mhe} said. {n} sat "
                    "down beside {mhim}, and [they talked|{m} talked] for a long time. In the end, {m} smiled.",
                ),
            ),
            not_natures="shy grumpy",
            lesson="friend",
        ),
        Obstacle(
            "afraid",
            "[By the gate|Under a tree], {n} saw a tiny {mk} named {m}. But when {m} saw {n}, {mhe} ran away and hid. "
            "<[You are so big|Please do not hurt me]!> {mhe} cried.",
            (
                Helper(
                    "mouse rabbit hedgehog squirrel",
                    "{n} did not run after {mhim}. {He} lay down in the grass and began to [hum a soft song|tell a funny "
                    "story]. Slowly, {m} came "
                    "closer. <You are not scary at all,> said {m}. <Of course not,> said {n}. <I only want a friend.>",
                ),
            ),
            not_for="mouse bird frog hedgehog squirrel rabbit lamb turtle duck",
            not_wishes="seesaw",
            lesson="friend",
        ),
        Obstacle(
            "different",
            "[By the gate|Under a tree], {n} met {a madj} {mk} named {m}. <We cannot be friends,> said {m}. <[You are a {k}, "
            "and I am {a mk}|"
            "{A k} and {a mk} are too different].>",
            (
                Helper(
                    "frog turtle duck owl horse cow mouse mole",
                    "{n} thought about it. <What do you like best?> {he} asked. <[Stories|Blueberries|Rainbows|Warm rain],> "
                    "said {m}. "
                    "<So do I!> cried {n}. They both laughed. <Then we are not so different,> said {m}.",
                ),
            ),
            lesson="friend",
        ),
        Obstacle(
            "quarrel",
            "{He} asked {a mk} named {m} to come. But they both wanted to [be first|go first], and they began to fight about "
            "it. <Then I am going home!> "
            "said {m}.",
            (
                Helper(
                    "girl boy dog cat rabbit pig bear fox",
                    "{n} sat there alone. It was very quiet. Then {he} got up and ran after {m}. <I am sorry,> {he} said. "
                    "<You can go first.> "
                    "<I am sorry, too,> said {m}. <[We can take turns|Let us take turns].>",
                ),
            ),
            not_natures="shy",
            not_wishes="tea stars band",
            lesson="share",
        ),
        Obstacle(
            "new here",
            "{n} had just moved to [a new place|that place] and knew nobody. In the meadow, {he} saw {a madj} {mk} named {m}, "
            "but {m} was [busy with a big box|busy with a "
            "long rope].",
            (
                Helper(
                    "girl boy dog rabbit goat pig",
                    "{n} went closer and watched. <Can I help you?> {he} asked at last. <Oh, yes!> said {m}. <Two can do it "
                    "better.> Together it "
                    "was done in no time. <You are new here,> said {m}. <[Now you have a friend|Now you know me].>",
                ),
            ),
            lesson="friend",
        ),
    ),
)

LOST_AND_FOUND = (
    Obstacle(
        "under",
        "They looked for a long time. Then {n} saw something shiny under a big log, but the log was too heavy for them.",
        (
            Helper(
                "bear horse cow", "{m} was very strong. {mHe} pushed the log, and it rolled to one side. There lay the {item}!"
            ),
            Helper(
                "mouse mole",
                "{m} was so small that {mhe} could crawl under the log. Soon {mhe} came out again with the {item}.",
            ),
        ),
        "[The {item} is under the log|We cannot move this log]",
        not_for="bear mouse",
        not_wishes="baby wing",
    ),
    Obstacle(
        "pond",
        "They looked for a long time. Then {n} saw something shiny in the pond, but the water was too deep for them.",
        (
            Helper("duck swan", "{m} put {mhis} head under the water and came up with the {item} in {mhis} beak."),
            Helper("frog turtle", "{m} jumped into the pond and swam down to the ground. Soon {mhe} came up with the {item}."),
        ),
        "[The {item} is at the bottom of the pond|The water is too deep for us]",
        not_for="duck frog turtle dog bear bird",
        not_wishes="baby wing",
    ),
    Obstacle(
        "gone",
        "They looked under every leaf and behind every stone, but the {item} was not there.",
        (
            Helper(
                "dog",
                "{m} had a very good nose. {mHe} smelled here and there, and then {mhe} began to dig. There was the {item}!",
            ),
            Helper(
                "crow bird",
                "{m} flew up and looked down from the sky. <I see something shiny!> {mhe} called. It was the {item}!",
            ),
            Helper(
                "girl boy",
                "<Where did you play last?> asked {m}. <On the swing,> said {f}. They all ran there, and there lay the {item}!",
            ),
        ),
        "[We cannot find the {item}|The {item} is gone]",
        not_for="dog bird",
        not_wishes="baby wing",
    ),
)
HELP = Family(
    "help",
    (
        Wish(
            "item",
            "{n} met {his} friend {f} the {fk}. {f} was crying. <I have lost my {item},> {fhe} said. {n} wanted to help.",
            "<My {item}!> cried {f}, and {fhe} danced with joy. Then {fhe} invited {n} and {m} to [hot chocolate|tea and "
            "cake].",
            {"item": "[silver bell|gold ring|little key|shiny button|gold coin]"},
        ),
        Wish(
            "baby",
            "{n} heard a small cry. Under a bush sat a baby {baby}, all alone. <I want my mama!> it cried. {n} wanted to help.",
            "[Soon|At last] the baby {baby} was back with its mother. She held it close. <[Thank you with all my heart!|How "
            "can I thank you?]> "
            "she said. {n} felt warm inside.",
            {"baby": "[duck|owl|goat|sheep|goose]"},
        ),
        Wish(
            "wing",
            "{n} found a young {baby} on the ground. Its wing was hurt, and it could not fly. {n} wanted to help.",
            "Day by day, the wing got better. Then, one morning, the {baby} flew up, turned a circle in the sky and sang [a "
            "thank-you song|a song for "
            "{n}].",
            {"baby": "[robin|sparrow|swallow]"},
            not_for="cat bird",
        ),
    ),
    (
        *LOST_AND_FOUND,
        Obstacle(
            "where",
            "But {n} did not know where the mother was, and the baby [was too small to tell|did not know the way].",
            (
                Helper(
                    "crow bird",
                    "{m} flew high up and looked around. <The mother is over there, behind the hill!> {mhe} called.",
                ),
                Helper(
                    "dog fox",
                    "{m} had a very good nose. {mHe} smelled the ground and led them through the grass, right to the mother.",
                ),
                Helper(
                    "owl deer", "{m} knew everyone in the forest. <I know where its mother lives,> {mhe} said. <Follow me.>"
                ),
            ),
            "[This baby {baby} is lost|We are looking for its mother]",
            not_for="bird dog fox",
            not_wishes="item wing",
        ),
        Obstacle(
            "cries",
            "But the baby cried and cried, and {n} could not ask where its home was.",
            (
                Helper(
                    "frog monkey pig",
                    "{m} made a very funny face. The baby stopped crying and began to laugh. It laughed so loudly that its "
                    "mother heard it and came running.",
                ),
                Helper(
                    "girl boy bird",
                    "{m} began to sing a soft song. The baby stopped crying and sang, too. Its mother heard the song from far "
                    "away and came running.",
                ),
            ),
            "[This baby {baby} does not stop crying|I do not know how to help this baby {baby}]",
            not_wishes="item wing",
        ),
        Obstacle(
            "how",
            "But {n} did not know how to make a wing better, and [it was getting cold|evening was coming].",
            (
                Helper(
                    "owl", "{m} was very wise. {mHe} tied the wing with a soft leaf and showed {n} what to feed the {baby}."
                ),
                Helper(
                    "girl boy farmer doctor",
                    "{m} put a soft cloth around the wing. Then they made a warm bed of hay for the {baby}.",
                ),
            ),
            "[This {baby} cannot fly|The wing of this {baby} is hurt]",
            not_wishes="item baby",
        ),
    ),
)

FAMILIES = ((JOURNEY, 8), (TOY, 6), (LEARN, 5), (MAKE, 5), (FRIEND, 5), (HELP, 4))
