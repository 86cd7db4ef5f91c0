"""Prompts for calibrating: many subjects, styles and lengths, so that every layer has work to do."""

from .latents import AUDIO, PICTURE, VIDEO

#: For text encoders.
DEFAULT_PROMPTS = """\
a cat
red bicycle leaning on a blue wall
portrait of an old fisherman, deep wrinkles, grey beard, soft window light, 85mm photograph
a bowl of ramen with a soft egg, steam rising, seen from above
isometric view of a tiny bakery on a floating island, pastel colours, clay render
The quick brown fox jumps over the lazy dog while seven wizards box in the rain.
a street sign that says "NO PARKING 8-18h" in front of a closed bookshop
wide shot of a storm over the prairie, lightning far away, a lone farmhouse with one lit window
watercolour sketch of three sparrows on a wire, loose brush strokes, white paper
macro photograph of a dew drop on a spider's web at sunrise
an astronaut rides a horse through a field of sunflowers, oil on canvas, thick paint
black and white photo, crowded tram in Lisbon, 1950s, motion blur
blueprint of a steam locomotive with labels and measurements, thin white lines on blue
A detailed matte painting of a city carved into a canyon wall, with rope bridges between towers, market stalls under \
coloured awnings, water falling from a broken aqueduct, and two moons in a violet evening sky.
anime girl with short silver hair and a yellow raincoat waiting at a bus stop, puddles, neon reflections
logo of a mountain inside a circle, flat vector, two colours
x-ray image of a seashell
children's book illustration: a bear and a mouse share an umbrella in the autumn forest
product shot of a wrist watch with a leather strap on dark slate, rim light, reflections
low quality, blurry, watermark, extra fingers, bad anatomy, jpeg artifacts
a man in a green suit plays chess against a robot made of copper pipes; the robot is winning
aerial view of rice terraces after rain, mirror-like water, tiny figures with straw hats
cross-section diagram of a volcano, textbook style, arrows and captions
The camera slowly pans over a wooden desk: a half-written letter, a broken compass, dried lavender, a brass key and a \
photograph whose face has been torn out. Dust floats in the slanting light. Somewhere a clock ticks.
8-bit pixel art of a knight in front of a castle gate, sixteen colours
une rue de village en Provence, volets bleus, lavande, lumiere du matin
ein verschneiter Wald bei Nacht, eine Laterne, ein Fuchs
glass sculpture of a jellyfish, studio lighting, caustics on the table
first person view from a roller coaster at the top of the first drop, city skyline, summer haze
abstract composition of overlapping translucent triangles in orange, teal and off-white
an elderly woman laughs with her eyes closed, flour on her hands, kitchen full of morning sun
1girl, solo, masterpiece, best quality, cherry blossoms, wind, looking back, depth of field
"""

#: For what samples pictures. Any first few of a list are varied, too.
PICTURES = (
    "photograph of a wooden rowing boat on a misty lake at dawn",
    "portrait of a young woman with freckles, soft window light, grey background",
    "a bowl of cherries on a checked tablecloth, oil painting",
    "street market in Marrakesh at noon, crowds, hanging lamps, long shadows",
    "flat vector icon of a rocket, orange and navy, plain background",
    "a red fox asleep in fresh snow, telephoto lens",
    "brutalist concrete library under a stormy sky, wide angle",
    "shop sign with the words OPEN ALL NIGHT in pink neon, rainy street",
    "watercolour map of an imaginary island with mountains and harbours",
    "macro photo of a beetle with a metallic green shell on a leaf",
    "two old men play chess in a park in autumn, black and white film",
    "cute robot gardener waters tulips, 3d render, pastel colours",
    "spiral galaxy over a desert with rock arches, long exposure",
    "pencil sketch of a violin and sheet music",
    "a plate of sushi on black slate seen from above, studio light",
    "knight in tarnished armour kneels in a ruined cathedral, dramatic light",
    "aerial view of a winding river through green rainforest",
    "comic panel: a detective in a trench coat under a street lamp",
    "toddler laughs in a pile of yellow leaves, shallow depth of field",
    "stained glass window with a heron and water lilies",
    "sports car drifts on a wet race track, motion blur, spray",
    "cosy reading corner with a cat, bookshelves and a rainy window",
    "anime girl with headphones on a rooftop at sunset, city below",
    "woodcut print of a whale and a small ship in high waves",
    "close-up of weathered hands shaping clay on a potter's wheel",
    "futuristic train station, white curves, morning haze, few travellers",
    "low poly mountain landscape in purple and teal",
    "a glass of iced tea with lemon and mint, backlit, droplets",
    "fashion photo, man in a yellow suit against a blue wall, hard light",
    "abstract ink swirls in water, crimson and black",
    "penguin colony on an icy shore, overcast, wide shot",
    "ancient scroll with tiny drawings of plants and handwritten notes",
)

#: For what samples video: things that move, and cameras that do.
VIDEOS = (
    "a sailing boat crosses a bay at sunset, the camera follows from a drone",
    "close-up of an old woman who begins to smile, candle light flickers",
    "city crossing in heavy rain, people with umbrellas hurry by, time lapse",
    "a horse gallops along a beach, slow motion, spray in the air",
    "pancake batter is poured into a hot pan, bubbles rise",
    "cartoon fox tiptoes through a forest, looks back and runs",
    "a train leaves a snowy station, steam drifts over the platform",
    "camera glides through a cathedral towards a glowing window",
    "a dancer spins in a red dress on an empty stage, one spotlight",
    "macro shot: a drop of ink spreads in clear water",
    "kitten chases a ball of wool across a wooden floor",
    "astronaut floats past a window, the earth turns below",
    "wheat field in the wind under passing clouds, static camera",
    "a blacksmith strikes glowing iron, sparks fly",
    "first person view of a bicycle ride down a mountain trail",
    "jellyfish pulse slowly in deep blue water",
    "a boy blows out birthday candles, his friends clap",
    "waves break against a lighthouse in a storm, wide shot",
    "robot arm assembles a watch on a bright workbench",
    "timelapse of a flower that opens, black background",
    "skater jumps over stairs at dusk, handheld camera",
    "an owl turns its head and takes off from a branch",
    "paper boats drift down a gutter after rain, low angle",
    "neon street at night, a taxi passes, reflections ripple in puddles",
    "chef slices vegetables quickly, top view",
    "hot air balloons rise over a valley at dawn, camera pans left",
    "two children build a sandcastle, the tide comes in",
    "clay animation of a snail that climbs a mushroom",
    "crowd at a concert waves lights, the singer raises an arm",
    "a leaf falls into a pond and rings spread, slow motion",
    "elephants walk in line through dust, telephoto, heat haze",
    "abstract coloured ribbons twist and fold into each other, loop",
)

#: For what samples sound: music of many kinds, voices, and noises.
SOUNDS = (
    "slow solo piano, late evening, soft pedal, 60 bpm",
    "driving techno with a deep kick and acid bass, 132 bpm",
    "acoustic folk guitar and a warm male voice, campfire mood",
    "heavy rain on a tin roof with distant thunder",
    "string quartet, cheerful, in the style of a country dance",
    "funk with slap bass, tight drums and brass stabs, 105 bpm",
    "busy cafe, cups clink, muffled talk",
    "ambient pads with long reverb, no drums, dreamy",
    "fast punk rock, distorted guitars, shouted chorus, 180 bpm",
    "birdsong at dawn in a forest, a brook nearby",
    "jazz trio with brushes, walking bass and muted trumpet",
    "orchestral film music, rising strings, timpani, heroic horns",
    "old steam train arrives, brakes squeal, whistle",
    "reggae with offbeat guitar and organ, relaxed, 75 bpm",
    "female choir sings a slow hymn in a stone church",
    "chiptune melody, square waves, playful, 150 bpm",
    "bossa nova with nylon guitar and soft percussion",
    "footsteps on gravel, then a door creaks",
    "drum and bass with rolling breaks and a dark bass line, 174 bpm",
    "blues harmonica and slide guitar, slow shuffle",
    "church bells over a village square",
    "hip hop beat with a dusty sample and lazy drums, 88 bpm",
    "tango with accordion and violin, dramatic pauses",
    "ocean waves on a pebble beach, gulls",
    "symphonic metal, double bass drums, soprano voice",
    "lullaby on a music box",
    "samba school percussion, whistles, street parade",
    "crackling fire and wind outside a cabin",
    "synth pop with bright arpeggios and a catchy hook, 118 bpm",
    "solo cello, sorrowful, close microphone",
    "a crowd cheers in a stadium",
    "minimal marimba patterns that shift against each other",
)

BUILT_IN = {PICTURE: PICTURES, VIDEO: VIDEOS, AUDIO: SOUNDS}
