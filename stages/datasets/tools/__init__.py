"""The exports of annotation tools, each read into Drawings by the image's name as the tool has it."""
