"""Data sets in their original formats: layouts, label values, annotations, checks."""
