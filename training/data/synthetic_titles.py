"""The titles of the synthetic bookshop, by theme. `synthetic.py` makes items of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    name: str
    cues: tuple[str, ...]
    series: tuple[str, ...]
    adjectives: tuple[str, ...]  # adjectives and nouns make the volumes' subtitles
    nouns: tuple[str, ...]
    standalones: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


DETECTIVE = Theme(
    name="detective",
    cues=("Rainy Evening Tea Sampler", "Brass Magnifying Glass Bookmark"),
    series=("Inspector Quill", "Madame Marchetti", "Constable Birdie", "Sergeant Vole"),
    adjectives=_words("Silent Borrowed Second Missing Crooked Velvet Unsigned Locked Spotted Patient"),
    nouns=_words("Greenhouse Umbrella Alibi Cellist Staircase Ledger Teapot Witness Postcard Orchard"),
    standalones=_lines("""
        Eleven Clues for Breakfast
        The Butler Takes Tuesday Off
        A Body of Work
        Murder by Marginalia
        The Man Who Confessed Twice
        Death at the Chess Club
        Everyone Had a Key
        The Poisoned Crossword
        A Very Small Crime
        Fingerprints in the Jam
        No Trains After Midnight
        The Honest Forger
        Nobody Liked the Colonel
        The Last Page Is Missing
        Six Suspects and a Spaniel
        The Quiet Side of Baker Court
    """),
)

SPACE = Theme(
    name="space",
    cues=("Glow in the Dark Star Map", "Freeze Dried Strawberry Ration"),
    series=("Captain Oriole", "Station Vesper", "Comet Salvage", "Moon Janitor"),
    adjectives=_words("Slow Amber Hollow Ninth Weightless Distant Humming Magnetic Wandering Last"),
    nouns=_words("Airlock Eclipse Signal Orbit Asteroid Beacon Telescope Cargo Horizon Antenna"),
    standalones=_lines("""
        Letters from Low Orbit
        The Cartographer of Empty Space
        Gravity Is a Rumour
        Two Sunsets on Tuesday
        How to Feed a Robot
        The Planet with One Bench
        Lost Property of the Milky Way
        A Brief Stop at Saturn
        My Neighbour the Nebula
        The Astronaut Who Hated Heights
        Tea on the Dark Side
        Light Years Are Not Time
        The Museum of Dead Satellites
        Please Do Not Wake Jupiter
        Nine Ways to Leave Earth
        An Ordinary Day on Mars
    """),
)

GARDEN = Theme(
    name="garden",
    cues=("Packet of Sweet Pea Seeds", "Beeswax Gardener Hand Balm"),
    series=("Mrs Thimble", "Uncle Bramble", "Compost Club", "Hedgerow Diaries"),
    adjectives=_words("Late Climbing Muddy Prize Wild Frosted Thorny Sunlit Reluctant Forgotten"),
    nouns=_words("Marrow Trellis Rhubarb Wheelbarrow Dahlia Scarecrow Hedgehog Bonfire Tulip Pond"),
    standalones=_lines("""
        A Year of Small Weeds
        The Patience of Moss
        What the Earthworm Knows
        Roses for Absent Friends
        Slugs: A Love Story
        The Woman Who Planted Rain
        Pruning for the Undecided
        Tomatoes on the Ninth Floor
        In Praise of Dandelions
        The Secret Life of Sheds
        Bees Never Read Signs
        My Father's Apple Ladder
        Forty Shades of Lettuce
        The Gardener Sleeps in Winter
        Paths That Grow Back
        A Fence Is Not Forever
    """),
)

SEA = Theme(
    name="sea",
    cues=("Tin of Sea Salt Caramels", "Knitted Fisherman Hat Kit"),
    series=("Skipper Maud", "Salt Road", "Lighthouse Twins", "Barnacle Bay"),
    adjectives=_words("Grey Stubborn Painted Long Whistling Salted Southern Rusty Leaking Moonlit"),
    nouns=_words("Anchor Lagoon Foghorn Tide Lobster Harbour Compass Sandbank Dinghy Gale"),
    standalones=_lines("""
        The Island That Came Back
        Knots My Mother Taught Me
        A Whale in the Choir
        Postcards from the Sandbar
        The Mapmaker's Wet Shoes
        Swimming Lessons for Sailors
        Nothing but Weather
        The Drowned Bell of Ely Point
        Herring and Other Heroes
        We Rowed All Summer
        The Ferry Is Always Late
        Salt in the Piano
        An Octopus at the Window
        Where Rivers Forget Their Names
        The Captain's Second Parrot
        Low Water Mark
    """),
)

KITCHEN = Theme(
    name="kitchen",
    cues=("Small Jar of Smoked Paprika", "Linen Apron with Deep Pockets"),
    series=("Chef Clementine", "Bistro Lune", "Grandma Ottoline", "Midnight Bakery"),
    adjectives=_words("Burnt Secret Perfect Runaway Sticky Layered Golden Humble Jealous Simmering"),
    nouns=_words("Dumpling Custard Ladle Recipe Onion Pancake Saffron Marmalade Oven Cinnamon"),
    standalones=_lines("""
        Butter Makes It Better
        The Year We Ate Outside
        Cooking for One Enormous Dog
        A Short History of Toast
        The Spoon Drawer
        Garlic Before Breakfast
        Leftovers of Distinction
        My Sourdough Has a Name
        Nobody Measures Salt
        Pickles for the Long Night
        The Waiter Who Knew Everything
        Thirteen Soups for Sad Days
        Bread Rises Without Me
        Dinner with the Upstairs People
        The Lemon Thief of Amalfi
        Crumbs on the Manuscript
    """),
)

GHOST = Theme(
    name="ghost",
    cues=("Box of Black Beeswax Candles", "Velvet Curtain Reading Shawl"),
    series=("Hallow Manor", "Doctor Umber", "Attic Society", "Polite Poltergeist"),
    adjectives=_words("Whispering Pale Restless Thirteenth Unlit Shivering Courteous Faded Creaking Hungry"),
    nouns=_words("Corridor Portrait Candle Nursery Piano Mirror Lodger Cellar Veil Lantern"),
    standalones=_lines("""
        The House Remembers You
        Somebody Folded the Sheets
        A Ghost of Few Words
        The Vicar's Other Shadow
        Footsteps Going Only Up
        We Keep the Blue Room Shut
        Haunted by Correspondence
        The Clock That Ran Backwards
        Tea with the Late Mr Finch
        Do Not Answer the Well
        The Girl Behind the Wallpaper
        Every Mirror but One
        Snow in the Empty Ballroom
        Eulogy for a Living Man
        The Lamplighter's Last Round
        A Draught from Nowhere
    """),
)

THEMES = (DETECTIVE, SPACE, GARDEN, SEA, KITCHEN, GHOST)
