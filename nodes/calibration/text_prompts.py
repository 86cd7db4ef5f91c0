"""Texts for calibrating text encoders: of every length and kind."""

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
