"""Formats of annotations, a module each: NAME, SUFFIX, matches(file), read(file), and write(images, classes, out)."""
