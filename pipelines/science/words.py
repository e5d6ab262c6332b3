"""The wording of conditions and looks.

An implicit prompt is a subject, a phrase for the condition, and a circumstance that decides nothing (`an anchor left in the
sea for several years`). HEADS[law][condition] has four phrases that training may use and eight with words that no training
prompt has, separated by `|` and `||`. Circumstances are the same for all conditions of a law.
"""

from __future__ import annotations

import re

TAILS: dict[str, tuple[str, ...]] = {
    "ripeness": ("", "this year", "on a farm", "near a village"),
    "season": ("", "on a hill", "beside a road", "in a park"),
    "rust": ("", "on an island", "at a harbour", "near a village"),
    "melting": ("", "for an hour", "since lunch", "by mistake"),
    "light": ("", "for a month", "since the holidays", "at a school"),
    "watering": ("", "at a school", "near a village", "on a farm"),
    "circuit": ("", "on a Monday", "in a small town", "for an hour"),
    "flame": ("", "in a laboratory", "on a table", "at a school"),
    "buoyancy": ("", "at a school", "in a laboratory", "on a Monday"),
    "absorption": ("", "in a laboratory", "on a table", "at a school"),
    "layers": ("", "in a laboratory", "at a school", "on a table"),
    "diffusion": ("", "in a laboratory", "at a school", "on a table"),
}
_HEADS: dict[str, dict[str, str]] = {
    "ripeness": {
        "early": "picked weeks too early|gathered before the right time|harvested much too soon|still growing||"
        "that is immature|that has not developed|plucked prematurely|in its first days of growth|that is underdeveloped|"
        "cut while undersized|taken from a young shoot|at the start of its life",
        "ready": "picked at the right time|gathered when ready|harvested on the best day|grown to full size||"
        "that is fully mature|that has developed completely|plucked at its peak|grown for the whole season|"
        "perfect for serving|collected at its prime|worth eating today|of the finest quality",
    },
    "season": {
        "winter": "in January|in deep winter|in the coldest weeks|when lakes freeze||in February|in December|at Epiphany|"
        "under snowdrifts|during frost|when ponds have ice|on the shortest day|when people ski",
        "spring": "in April|in early spring|in the weeks after winter|when birds build nests||in May|at Easter|when lambs are born|"
        "when bees return|as swallows arrive|when farmers sow|after the thaw|when gardens awake",
        "summer": "in July|in midsummer|in the hottest weeks|when people swim||in August|in June|on the longest day|"
        "when wheat stands high|during a heatwave|when thunderstorms come|during beach weather|when crickets sing",
        "autumn": "in October|in late autumn|in the weeks before winter|when birds fly south||in November|at Halloween|when fog returns|"
        "at the grape harvest|when evenings shorten|as hedgehogs hide|when storms begin|after the potato harvest",
    },
    "rust": {
        "wet": "left in the sea|kept in a wet cellar|left out in the rain|at the bottom of a lake||soaked in brine|lost in a swamp|"
        "buried in damp soil|sprayed with salt water|forgotten in a puddle|in a flooded ship|exposed to fog|beneath a dripping pipe",
        "dry": "kept in a dry room|wrapped in oiled paper|made this morning|new from the shop||sealed in plastic|stored in a desert|"
        "polished daily|displayed behind glass|packed with silica|greased carefully|in a museum cabinet|fresh from the factory",
    },
    "melting": {
        "hot": "beside a fire|in the midday sun|on a hot stove|in a warm oven||on a radiator|in boiling water|under a heat lamp|"
        "over a bonfire|inside a sauna|on scorching sand|near a furnace|in a tropical greenhouse",
        "cold": "in a freezer|in the snow|in a cold cellar|on a winter night||in a refrigerator|on a glacier|inside an igloo|"
        "at the South Pole|in icy wind|below zero degrees|in chilled storage|on a frosty balcony",
    },
    "light": {
        "dark": "kept in a dark cellar|shut in a cupboard|under a black box|in a room without windows||hidden in a wardrobe|"
        "locked in a drawer|beneath an opaque bucket|covered by a thick blanket|inside a closed suitcase|in a cave|"
        "in a lightless tunnel|deprived of sunshine",
        "bright": "kept at a sunny window|in a bright garden|under a strong lamp|in a room with large windows||on a balcony|"
        "in a glasshouse|beneath a skylight|bathed in sunshine|in an open meadow|facing south|outdoors in daylight|"
        "on a sunlit terrace",
    },
    "watering": {
        "drought": "not watered for weeks|that everyone forgot to water|in soil without water|through weeks without rain||"
        "during a drought|in parched earth|in a desert climate|while the tap was broken|in bone-dry sand|"
        "neglected by its owner|without a single drop|whose hose leaked elsewhere",
        "watered": "watered every day|that everyone remembers to water|in soil full of water|through weeks of rain||"
        "with regular irrigation|in moist earth|in a humid climate|while the sprinkler ran|in damp compost|"
        "tended by its owner|with plenty to drink|beside a stream",
    },
    "circuit": {
        "off": "while the power is off|in a house without current|when the power station fails|with the main switch off||"
        "during a blackout|after the fuse blew|during an outage|with the electricity cut|when cables are down|"
        "after lightning struck the grid|where the bill is unpaid|with the breaker tripped",
        "on": "while the power is on|in a house with current|when the power station works|with the main switch on||"
        "after repairs by an electrician|with a new fuse|on a stable grid|with electricity available|when cables are intact|"
        "once the outage ended|where the bill is paid|with the breaker closed",
    },
    "flame": {
        "plain": "with nothing in it|without any salt|with no powder added|burning as usual||in its ordinary state|"
        "burning plain wood|without additives|burning cardboard|left untouched|burning straw|without chemicals|burning charcoal",
        "copper": "with copper in it|with copper salt added|burning copper powder|with barium salt added||with verdigris|"
        "with malachite|with boric acid|with bluestone|with brass dust|with tellurium|with ulexite|with thallium",
        "sodium": "with sodium in it|with sodium salt added|burning sodium powder|with cooking salt added||with soda|"
        "with seawater|with brine|with saltwater|with lye|with bicarbonate|with halite|with pretzel crumbs",
        "potassium": "with potassium in it|with potassium salt added|burning potassium powder|with potash added||"
        "with saltpetre|with rubidium|with tartar|with alum|with permanganate|with sylvite|with kainite|with langbeinite",
        "lithium": "with lithium in it|with lithium salt added|burning lithium powder|with strontium salt added||"
        "with calcium|with celestine|with spodumene|with lepidolite|with flare mixture|with strontianite|"
        "with petalite|with limestone",
        "caesium": "with caesium in it|with caesium salt added|burning caesium powder|with indium salt added||with selenium|"
        "with sulphur|with arsenic|with methanol|with gallium|with antimony|with pollucite|with spirits",
    },
    "buoyancy": {
        "alcohol": "dropped into alcohol|in a tank of alcohol|lowered into spirit|in a tank of spirit||in ethanol|in methanol|"
        "in vodka|in gin|in isopropanol|in propanol|in surgical disinfectant|in schnapps",
        "water": "dropped into water|in a tank of water|lowered into tap water|in a tank of rain||in an aquarium|in a pond|"
        "in a bathtub|in a swimming pool|in a river|in a well|in a puddle|in a brook",
        "mercury": "dropped into mercury|in a tank of mercury|lowered into quicksilver|in a tank of quicksilver||"
        "in liquid from thermometers|in metal that pours|in fluid barometer metal|in amalgam liquid|in element eighty|in Hg|"
        "in hydrargyrum|in the only fluid metal",
    },
    "absorption": {
        colour: f"in {colour} light|under a {colour} lamp|in a room with {colour} light|lit only by a {colour} lamp||"
        f"behind a {colour} filter|by a {colour} headlight|lit by a {colour} LED|below a {colour} bulb|in a {colour} laser beam|"
        f"in a {colour} disco|under {colour} neon|under {colour} spotlights"
        for colour in ("red", "green", "blue")
    },
    "layers": {
        "poured": "poured into water|in a vessel with water|and water in one vessel|added to water||reposing with water|"
        "stirred into water yesterday|shaken with water earlier|beside water inside one container|combined with water|"
        "tipped onto water|united with water|left standing with water",
    },
    "diffusion": {
        "at once": "dropped into water just now|in water for a moment|falling into water|at first in water||"
        "entering water|touching water initially|released into water an instant ago|photographed on contact with water|"
        "plunging into water|in water for one blink|splashing into water|meeting water immediately",
        "later": "dropped into water long ago|in water for hours|resting in water|at last in water||"
        "in water since yesterday|in water overnight|settled in water|in water for ages|in water until evening|"
        "in water the next morning|in water after patient waiting|eventually in water",
    },
}


def heads(law: str, condition: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the phrases that training may use, and the ones with new words."""
    known, new = _HEADS[law][condition].split("||")
    return tuple(known.split("|")), tuple(new.split("|"))


#: (law, look) -> adjectives before the subject, and what comes after it; COLOUR: of the subject
_DESCRIBED: dict[tuple[str, str], tuple[str, str]] = {
    ("ripeness", "green"): ("green", "that is green"), ("ripeness", "coloured"): ("COLOUR", "that is COLOUR"),
    ("season", "green"): ("green", "with green foliage"), ("season", "bare"): ("bare", "without foliage"),
    ("season", "blossom"): ("flowering", "with pink flowers"), ("season", "orange"): ("orange", "with orange foliage"),
    ("rust", "clean"): ("clean", "without rust"), ("rust", "rusty"): ("rusty", "covered in rust"),
    ("melting", "solid"): ("solid", "in one piece"), ("melting", "puddle"): ("melted", "that is a puddle"),
    ("light", "green"): ("green", "that is green"), ("light", "pale"): ("pale", "that is pale"),
    ("watering", "upright"): ("upright", "that is upright"), ("watering", "withered"): ("withered", "that is brown and hangs"),
    ("circuit", "lit"): ("glowing", "that is glowing"), ("circuit", "dark"): ("dark", "that is dark"),
    ("buoyancy", "floats"): ("floating", "on SETTING"), ("buoyancy", "sinks"): ("sunken", "at the bottom of SETTING"),
    ("absorption", "bright"): ("bright", "on a SETTING background"), ("absorption", "dark"): ("black", "on a SETTING background"),
    ("layers", "above"): ("floating", "above water"), ("layers", "below"): ("sunken", "below water"),
    ("layers", "mixed"): ("", "mixed with water"), ("diffusion", "drop"): ("", "as a drop in water"),
    ("diffusion", "spread"): ("dissolved", "that colours all the water"), ("diffusion", "bottom"): ("sunken", "on the bottom of the water"),
}  # fmt: skip
COLOUR_OF = dict.fromkeys(("banana", "mango", "lemon"), "yellow") | dict.fromkeys(("orange", "peach"), "orange")
COLOUR_OF |= dict.fromkeys(("strawberry", "apple", "cherries", "tomato", "chili"), "red")
PLURAL = frozenset({"cherries", "blueberries", "jeans", "glass beads", "pebbles", "iron filings"})
#: substances: no article
MASS = frozenset(
    {
        "lettuce",
        "broccoli",
        "butter",
        "cheese",
        "shaved ice",
        "sand",
        "gravel",
        "gold dust",
        "coal dust",
        "coffee",
        "cola",
    }
)
MASS |= {
    "olive oil",
    "petrol",
    "paraffin",
    "sunflower oil",
    "diesel",
    "mercury",
    "tar",
    "chloroform",
    "bromine",
    "molasses",
}
MASS |= {
    "orange juice",
    "milk",
    "ink",
    "red wine",
    "tea",
    "red ink",
    "blue ink",
    "green dye",
    "violet dye",
    "beet juice",
}
#: laws whose setting is part of every description, with both parts
BOTH = ("buoyancy", "absorption", "layers", "diffusion")


def noun(subject: str, adjective: str = "") -> str:
    """Return the subject with its article and an adjective: `an anchor`, `a rusty anchor`, `rusty jeans`."""
    words = f"{adjective} {subject}".strip()
    if subject in PLURAL or subject in MASS:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


#: verb and pronoun forms of the phrases -> those after a plural subject
_PLURAL_FORMS = {"that is": "that are", "that has": "that have", "its": "their", "that colours": "that colour"}
_FORMS = re.compile(rf"\b({'|'.join(_PLURAL_FORMS)})\b")


def joined(subject: str, words: str) -> str:
    """Return the subject with its article and a phrase in the right number: `cherries that are green`."""
    if subject in PLURAL:
        words = _FORMS.sub(lambda match: _PLURAL_FORMS[match[1]], words)
    return f"{noun(subject)} {words}"


def described(law: str, subject: str, look: str, setting: str = "", form: int = 0) -> str:
    """Describe a look, as in explicit, superficial and base prompts. form: 0 (adjective) or 1 (clause, where the law has one)."""
    if law == "flame":
        return f"{noun(subject)} with {noun('flame', look)}" if form == 0 else f"{noun(subject)} whose flame is {look}"
    adjective, clause = _DESCRIBED[law, look]
    colour = COLOUR_OF.get(subject, "yellow")
    adjective, clause = (text.replace("COLOUR", colour).replace("SETTING", setting) for text in (adjective, clause))
    if law in BOTH and (form == 0 or law == "absorption"):
        return f"{noun(subject, adjective)} {clause}"
    return noun(subject, adjective) if form == 0 else joined(subject, clause)


def bare(law: str, subject: str, setting: str = "") -> str:
    """Name the subject, and the lamp or the liquid, without its look."""
    named = {"buoyancy": f" in {setting}", "absorption": f" on a {setting} background", "layers": " and water"}
    return noun(subject) + named.get(law, " in water" if law == "diffusion" else "")


def with_trait(text: str, trait: str) -> str:
    """Add a subject's trait: `a rusty anchor, made of iron`, `a pale fern, a plant`."""
    return f"{text}, {'made ' if trait.startswith('of ') else ''}{trait}"
