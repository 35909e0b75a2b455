"""Formats of annotations, a module each: NAME, SUFFIX, read(file), and write(images, classes, out)."""
