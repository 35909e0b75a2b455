"""PNGs in the data set's label values, named by the image's id."""

from sesam.datasets.annotations.common import Annotation, AnnotationFile, Drawn, LabelSpec
from sesam.datasets.data_issues import DataIssue, IssueKind
from sesam.datasets.label_maps import read_values
from sesam.errors import SesamError

NAME, SUFFIX = "PNG", ".png"


class LabelPng(Annotation):
    """A label file."""

    def draw(self, spec: LabelSpec) -> Drawn:
        try:
            values, colors = read_values(self.path, spec.label_map)
        except SesamError as problem:
            raise DataIssue(IssueKind.UNREADABLE, str(problem)) from None
        labels, unknown = spec.label_map.class_ids(values)
        self.check_size(labels.shape, spec)
        return Drawn(labels, unknown, colors=colors)


def read(file: AnnotationFile) -> list[tuple[str, LabelPng]]:
    """The image that the file is named by; its pixels are read later."""
    return [(file.name, LabelPng(file.path))]
