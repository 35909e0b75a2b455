"""Where a pseudo-label's pixel comes from: the values of the source PNGs."""

NONE, WEAK, SAM, CONFIDENT = range(4)
SOURCE_NAMES = ("none", "weak label", "SAM", "confident prediction")
SOURCE_PALETTE = ((0, 0, 0), (230, 159, 0), (0, 114, 178), (0, 158, 115))
