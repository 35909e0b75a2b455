"""The classes of the drawn scenes: names, colors and ids, in the order of presets/demo.yaml."""

CLASSES = ("road", "sidewalk", "building", "vegetation", "sky", "pole", "sign", "person", "car")
PALETTE = (  # RGB, as in Cityscapes but for the pole's
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (107, 142, 35),
    (70, 130, 180),
    (190, 190, 150),
    (220, 220, 0),
    (220, 20, 60),
    (0, 0, 142),
)
ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, POLE, SIGN, PERSON, CAR = range(len(CLASSES))
