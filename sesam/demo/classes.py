"""The classes of the drawn scenes: names, colors and ids, in the order of presets/demo.yaml."""

CLASSES = ("road", "sidewalk", "building", "vegetation", "sky", "pole", "sign", "person", "car")
HEX_COLORS = "804080 f423e8 464646 6b8e23 4682b4 bebe96 dcdc00 dc143c 00008e"  # Cityscapes' but for the pole's
PALETTE = tuple((color[0], color[1], color[2]) for color in map(bytes.fromhex, HEX_COLORS.split()))  # RGB
ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, POLE, SIGN, PERSON, CAR = range(len(CLASSES))

NESTED_CLASSES = (*CLASSES, "window", "door", "bicycle", "rider")  # of scenes with classes inside classes
WINDOW, DOOR, BICYCLE, RIDER = range(len(CLASSES), len(NESTED_CLASSES))
