"""Data sets as their makers ship them: where files lie, what label values mean, what annotators drew."""
