"""params.yaml as typed groups, with a default and a description for each key.

Every stage checks the whole file when it starts. docs/reference/params.md is generated from here.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from unicodedata import category

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sesam.errors import SesamError, describe_validation_error
from sesam.paths import WEAK_LABELS
from sesam.yaml_io import read_yaml

Dtype = Literal["float32", "bfloat16"]
Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=10_000_000)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Channels = Annotated[int, Field(ge=2, le=4096)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Multiplier = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=16)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
ConfigName = Annotated[str, Field(pattern=r"^(\w[\w.+-]*/)*\w[\w.+-]*$")]  # a name, or a relative path without ..


def _to_hex(value: object) -> object:
    """A color as people write it, also [r, g, b], as "#rrggbb"; ValueError for what YAML made of one."""
    if value is None:
        raise ValueError('write colors in quotes, as "#ff0000"; without, # begins a comment')
    if isinstance(value, list) and len(value) == 3 and all(type(x) is int and 0 <= x <= 255 for x in value):
        return "#" + bytes(value).hex()
    return value.lower() if isinstance(value, str) else value


Color = Annotated[str, Field(pattern="^#[0-9a-f]{6}$"), BeforeValidator(_to_hex)]  # "#rrggbb"


def printable(name: str) -> str:
    """A name, as it is; ValueError for what XML cannot hold, and what a terminal or a table takes as a command."""
    if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", name):
        raise ValueError(f"{name!r:.60} has control characters; write it without")
    return name


ClassName = Annotated[str, Field(min_length=1), AfterValidator(printable)]
ClassNames = Annotated[list[ClassName], Field(min_length=2, max_length=255)]
Format = Literal["cityscapes", "ade20k", "voc", "camvid", "folder"]
Head = Literal["deeplabv3plus", "upernet", "segformer", "linear"]
Strategy = Literal["skeleton", "random", "confident", "center"]
Kind = Literal["fine", "coarse", "scribble", "point", "box", "none"]  # what annotators gave an image
KINDS: tuple[Kind, ...] = get_args(Kind)
RoundTeacher = Annotated[str, Field(pattern=r"^(none|baseline|r\d+)$")]

NO_TEACHER, BASELINE = "none", "baseline"
MAX_ASPECT_RATIO = 64  # of images: the smallest SAM works on 256 pixels
FINE_TRAIN_LABELS = "data/fine/train"  # the source of simulated weak labels; a path, because DVC depends on it
RESNETS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}
MAX_REPORT_IMAGES = 20  # `evaluate` keeps the predictions of so many, so that report.num_images repeats no inference


def _check_characters(values: Mapping[Any, Any]) -> None:
    """ValueError for a control character or half a surrogate pair in a text, a list of texts or a key."""
    texts = [text for key, value in values.items() for text in (key, *(value if isinstance(value, list) else [value]))]
    for text in texts:
        if isinstance(text, str) and any(category(x) in ("Cc", "Cs", "Zl", "Zp") for x in text):
            raise ValueError(f"{text!a:.60} has a control character, or one that no file can hold; remove it")


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_exponents(cls, values: object) -> object:
        """YAML reads 1e-3 as text; only 1.0e-3 is a number there."""
        if not isinstance(values, Mapping):
            return values
        _check_characters(values)
        numeric = [
            key for key in values if key in cls.model_fields and "float" in str(cls.model_fields[key].annotation)
        ]
        read = {k: float(values[k]) for k in numeric if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", str(values[k]))}
        return {**values, **read}


class DemoParams(Group):
    """A demo data set, drawn to data/raw/NAME."""

    train: Positive = Field(96, description="training images")
    val: Positive = Field(32, description="validation images")
    seed: Seed = Field(1, description="seed of the drawn scenes")


def is_value_or_color(key: str) -> bool:
    """Whether a key of `dataset.map` is a label value or a color; others are names."""
    return key.isdecimal() or re.fullmatch("#[0-9a-f]{6}", key) is not None


class DatasetParams(Group):
    format: Format = Field("folder", description="cityscapes, ade20k, voc, camvid; folder: images/ and labels/")
    root: str = Field("data/raw/mine", description="path of the data set")
    train_splits: list[str] | None = Field(None, description="original splits to train on; null: the usual ones")
    val_splits: list[str] | None = Field(
        None, description="original splits to validate on; null: the usual one; []: none"
    )
    subset: float | list[str] | None = Field(None, description="training images: a fraction, ids, or null for all")
    exclude: list[str] = Field([], description="ids of images to leave out; as train/ID or val/ID where both have one")
    classes: ClassNames | None = Field(None, description="folder only: class names, in id order")
    palette: list[Color] | None = Field(None, description="folder only: '#rrggbb' per class; null: generated colors")
    ignore_values: list[Byte] | None = Field(None, description="folder only: values without a class; null: 255")
    map: dict[str, str | None] = Field(
        {}, description="original values, '#rrggbb' colors or names: a class, or null for none"
    )

    @field_validator("map", mode="before")
    @classmethod
    def _keys_are_text(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        if wrong := [key for key in value if isinstance(key, bool) or not isinstance(key, (str, int))]:
            raise ValueError(f"keys must be values, colors or names; write {wrong[0]} in quotes")
        if wrong := [k for k in value.values() if k is not None and not isinstance(k, str)]:
            raise ValueError(f"what a value, color or name means is a class's name, or null; got {wrong[0]!r:.60}")
        _check_characters(value)
        return {str(_to_hex(key)) if str(key).startswith("#") else str(key): k for key, k in value.items()}

    @field_validator("subset", "exclude", mode="before")
    @classmethod
    def _ids_are_text(cls, value: object) -> object:
        if isinstance(value, list) and any(not isinstance(k, str) for k in value):
            raise ValueError('image ids must be quoted, as "2007_000032"; YAML reads numbers without quotes')
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _names_are_text(cls, value: object) -> object:
        if isinstance(value, list) and any(isinstance(k, (bool, int, float)) or k is None for k in value):
            raise ValueError('class names must be quoted, as "yes"; YAML reads yes, no, null and numbers otherwise')
        return value

    @field_validator("root", mode="after")
    @classmethod
    def _no_tilde(cls, value: str) -> str:
        if value.startswith("~"):
            raise ValueError(f"DVC does not know ~; write {Path(value).expanduser()}")
        return value

    @field_validator("subset", mode="after")
    @classmethod
    def _fraction(cls, value: float | list[str] | None) -> float | list[str] | None:
        if isinstance(value, float) and not 0 < value <= 1:
            raise ValueError("a fraction must be above 0 and at most 1")
        if value == []:
            raise ValueError("the list of ids is empty; null takes all images")
        return value

    @model_validator(mode="after")
    def _folder_keys(self) -> DatasetParams:
        if self.format != "folder":
            if coded := [key for key in self.map if is_value_or_color(key)]:
                raise ValueError(f"{self.format} defines its own label values; map has {coded[0]}, not a name")
            if given := [key for key in ("classes", "palette", "ignore_values") if getattr(self, key) is not None]:
                raise ValueError(f"{self.format} defines its own {', '.join(given)}; set them to null")
            return self
        if self.classes is None:
            raise ValueError("format folder needs classes, in id order")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have the same name")
        if self.palette is not None and len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.palette)} palette colors for {len(self.classes)} classes")
        if unknown := sorted({k for k in self.map.values() if k is not None} - set(self.classes)):
            raise ValueError(f"map has {unknown[0]}, which is not in classes; null means no class")
        if wrong := [key for key in self.map if key.isdecimal() and int(key) > 255]:
            raise ValueError(f"map has the value {wrong[0]}; labels have 8 bits, so at most 255")
        if shared := [k for k in self.ignore_values or [] if self.map.get(str(k)) is not None]:
            raise ValueError(f"ignore_values has {shared}, which map gives a class")
        has_values = any(key.isdecimal() for key in self.map)  # then values are no class ids
        if shared := [k for k in self.ignore_values or [] if k < len(self.classes) and not has_values]:
            text = f"ignore_values has {shared}, which are class ids (0 to {len(self.classes) - 1})"
            raise ValueError(f"{text}; if they are not, say in map what each value means")
        return self


class CoarseParams(Group):
    erosion: Ratio = Field(0.08, description="erosion radius, in square roots of the region's area")
    tolerance: NonNegative = Field(0.05, description="polygon simplification tolerance, same unit")


class ScribbleParams(Group):
    length_fraction: Multiplier = Field(0.7, description="drawn part of the skeleton's longest path")
    thickness: Pixels = Field(5, description="stroke width in pixels, also of annotators' lines")
    margin: Ratio = Field(0.3, description="distance to the region's edge, as a fraction of its largest distance")


class PointParams(Group):
    radius: Annotated[int, Field(ge=0, le=8192)] = Field(
        2, description="radius in pixels, also of annotators' clicks; 0: one pixel"
    )


class MixParams(Group):
    """Fractions of the training images that are simulated as another kind than `weak_labels.kind`."""

    fine: Ratio = Field(0.0, description="fine masks")
    coarse: Ratio = Field(0.0, description="coarse polygons")
    scribble: Ratio = Field(0.0, description="scribbles")
    point: Ratio = Field(0.0, description="points")
    box: Ratio = Field(0.0, description="boxes")
    none: Ratio = Field(0.0, description="no annotation")

    @model_validator(mode="after")
    def _at_most_all(self) -> MixParams:
        if (total := sum(self.shares.values())) > 1 + 1e-5:  # fractions as people round them
            raise ValueError(f"the fractions add up to {total:.7g}; they must not exceed 1")
        return self

    @property
    def shares(self) -> dict[Kind, float]:
        return {kind: getattr(self, kind) for kind in KINDS}


class WeakLabelParams(Group):
    kind: Literal["coarse", "scribble", "point", "box", "fine"] = Field(
        "scribble", description="coarse, scribble, point, box (annotators' or simulated); or fine, full supervision"
    )
    mix: MixParams = MixParams()
    unannotated: Literal["refuse", "use"] = Field(
        "refuse", description="training images without annotation: refuse, or use their fine label, or as unlabeled"
    )
    path: str = Field(
        FINE_TRAIN_LABELS,
        description="annotators' labels; or data/fine/train: simulate from fine ones",
    )
    min_area: Positive = Field(64, description="pixels; smaller regions get no simulated label")
    coarse: CoarseParams = CoarseParams()
    scribble: ScribbleParams = ScribbleParams()
    point: PointParams = PointParams()

    @field_validator("path", mode="after")
    @classmethod
    def _normalized(cls, value: str) -> str:
        """Equal paths are equal: without ./ before it or / behind it. The stage's own output cannot be its input."""
        path = Path(os.path.normpath(value))
        if WEAK_LABELS in (path, *path.parents):
            raise ValueError(
                f"weak labels are written to {WEAK_LABELS}; set {FINE_TRAIN_LABELS}, or the path of other labels"
            )
        return path.as_posix()


class Architecture(Group):
    """A head on a backbone, or a config of mmsegmentation. A trained network's folder holds it too."""

    config: ConfigName | None = Field(
        None, description="a config of mmsegmentation by name, or a file.py here; null: by the keys below"
    )
    config_sha256: Sha256 | None = Field(None, description="digest of a config of your own; DVC sees changes by it")
    backbone: str = Field(
        "resnet101",
        description="resnet18, 34, 50, 101 (mmsegmentation's V1c), or a timm model; NAME.TAG: images as TAG had them",
    )
    head: Head = Field("deeplabv3plus", description="deeplabv3plus, upernet, segformer or linear")
    base_channels: Channels | None = Field(64, description="channels of a ResNet's first stage; null for timm")
    head_channels: Channels = Field(512, description="channels of the head; linear has none")
    output_stride: Literal[8, 16] = Field(
        8, description="deeplabv3plus and linear on convolutions: 8 (published) or 16 (cheaper, coarser)"
    )
    aux_loss_weight: Ratio = Field(0.4, description="loss weight of the auxiliary head; 0: no such head")

    @model_validator(mode="after")
    def _base_channels_of_a_resnet(self) -> Architecture:
        if (self.backbone in RESNETS) != (self.base_channels is not None):
            wanted = "a number" if self.backbone in RESNETS else "null (timm models define their own)"
            raise ValueError(f"with backbone {self.backbone} base_channels must be {wanted}")
        return self


class NetworkParams(Architecture):
    """All networks have the same architecture."""

    dtype: Dtype = Field("float32", description="of training; bfloat16 needs a GPU")
    pretrained: str | None = Field(
        "open-mmlab://resnet101_v1c",
        description="backbone weights: a file, package:NAME, timm://NAME.TAG, a URL, or null",
    )
    sha256: Sha256 | None = Field(None, description="SHA-256 of the file in pretrained; DVC sees changes by it")

    @model_validator(mode="after")
    def _digest_of_a_file(self) -> NetworkParams:
        a_file = self.pretrained is not None and "://" not in self.pretrained and "package:" not in self.pretrained
        if (a_file and self.sha256 is None) or (self.sha256 and self.pretrained is None):
            raise ValueError("a file in pretrained needs its sha256, and sha256 a file (run `sha256sum FILE`)")
        return self


def _check_range(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is not None and value[0] > value[1]:
        raise ValueError(f"the lower end comes first: [{value[1]:g}, {value[0]:g}]")
    return value


BatchSize = Annotated[int, Field(ge=2, le=4096)]
CropSize = Annotated[tuple[Pixels, Pixels], Field(strict=False)]
ScaleRange = Annotated[tuple[Factor, Factor], Field(strict=False)]
Optimizer = Literal["sgd", "adamw", "config"]
LearningRate = Annotated[float, Field(gt=0, le=10)]


class Schedule(Group):
    max_iters: Positive = Field(40_000, description="training iterations")
    batch_size: BatchSize = Field(8, description="crops per iteration, over all GPUs")
    accumulate: Positive = Field(1, description="parts of a batch, computed one after the other: less memory")
    checkpoint_activations: bool = Field(False, description="true: recompute the backbone's; less memory, slower")
    crop_size: CropSize = Field((512, 512), description="height, width in pixels")
    scale_range: ScaleRange = Field((0.5, 2.0), description="random resize, lower and upper factor")
    optimizer: Optimizer = Field(
        "sgd", description="sgd (published), adamw (short schedules), config: network.config's"
    )
    lr: LearningRate = Field(0.01, description="learning rate")
    backbone_lr_mult: Ratio = Field(1.0, description="learning rate of the backbone, relative to lr; 0: it is frozen")

    _ordered = field_validator("scale_range", mode="after")(_check_range)


class ScheduleOverride(Group):
    """The keys of `schedule` that differ for this network."""

    max_iters: Positive | None = None
    batch_size: BatchSize | None = None
    accumulate: Positive | None = None
    checkpoint_activations: bool | None = None
    crop_size: CropSize | None = None
    scale_range: ScaleRange | None = None
    optimizer: Optimizer | None = None
    lr: LearningRate | None = None
    backbone_lr_mult: Ratio | None = None

    _ordered = field_validator("scale_range", mode="after")(_check_range)


class LossWeights(Group):
    """λ of the three-source loss, and of fine labels."""

    weak: NonNegative = Field(1.0, description="weight of annotators' pixels")
    fine: NonNegative = Field(1.0, description="weight of fine masks' pixels")
    sam: NonNegative = Field(1.0, description="weight of SAM's pixels")
    confident: NonNegative = Field(0.3, description="weight of the teacher's confident predictions")

    @model_validator(mode="after")
    def _not_all_zero(self) -> LossWeights:
        if not any((self.weak, self.fine, self.sam, self.confident)):
            raise ValueError("all loss weights are 0, so nothing would be learned; set one above 0")
        return self


class StudentParams(ScheduleOverride):
    init: Literal["pretrained", "teacher"] = Field("pretrained", description="initial weights: pretrained or teacher")
    loss_weights: LossWeights = LossWeights()
    sam_sample_prob: Ratio = Field(1.0, description="probability that a sample uses its SAM pixels")
    unannotated_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="fraction of the samples from images without annotation, where a teacher labels them"
    )


class TeacherParams(Group):
    confidence_threshold: Ratio = Field(0.9, description="γ: predictions below it are not used")
    min_class_fraction: Ratio = Field(
        0.7, description="fraction of each class's predictions that is used, whatever γ, in images without annotation"
    )


class ComponentParams(Group):
    per_instance: bool = Field(True, description="true: a component per connected region; false: one per class")
    connectivity: Literal[4, 8] = Field(8, description="pixel neighborhood of a component")
    min_area: Positive = Field(64, description="pixels; smaller components of predictions are dropped")


class SamplingParams(Group):
    prompt_type: Literal["points", "box", "mask", "concept"] = Field(
        "points", description="points, box or mask; concept: the class's name, for sam.model sam3"
    )
    strategy: Strategy = Field("skeleton", description="where points are: skeleton, random, confident, center")
    num_points: Positive = Field(5, description="points per component (N)")
    exemplars: bool = Field(False, description="concept: the boxes of the class's components are prompts too")


class SamParams(Group):
    enabled: bool = Field(True, description="false: weak labels and confident predictions alone, SAM is not used")
    model: str = Field(
        "vit_h", description="bundled, vit_b, vit_l, vit_h, sam2, sam3_tracker, sam3, sam_hq_*, superpixels"
    )
    checkpoint: str | None = Field(None, description="file of custom weights; null: the published ones")
    sha256: Sha256 | None = Field(None, description="SHA-256 of the checkpoint; DVC sees changes by it")
    dtype: Dtype = Field("bfloat16", description="of the image encoder")

    @model_validator(mode="after")
    def _digest_of_a_checkpoint(self) -> SamParams:
        if (self.checkpoint is None) != (self.sha256 is None):
            raise ValueError("checkpoint and sha256 go together: both null or both given (run `sha256sum FILE`)")
        return self


class SelectionParams(Group):
    min_mask_precision: Ratio = Field(0.3, description="τ1: least |M∩C|/|M|, for components without weak labels")
    min_coverage: Ratio = Field(0.7, description="τ2: least |M∩W|/|W|; without weak labels, |M∩C|/|C|")


class EvaluationParams(Group):
    """How a network predicts an image: a teacher, an evaluation, `sesam segment`. As in mmsegmentation's test_cfg."""

    mode: Literal["whole", "slide"] = Field("whole", description="whole images, or slide: the mean of windows' logits")
    crop_size: CropSize | None = Field(None, description="of slide: height, width of the windows in pixels")
    stride: CropSize | None = Field(None, description="of slide: pixels from window to window, down and across")
    flip: bool = Field(False, description="true: the mean of the probabilities of the image and its mirror image")
    scales: Annotated[tuple[Factor, ...], Field(strict=False, min_length=1, max_length=16)] = Field(
        (1.0,), description="the mean of the probabilities at these sizes, relative to the image's"
    )

    @model_validator(mode="after")
    def _windows_of_slide(self) -> EvaluationParams:
        given = self.crop_size is not None, self.stride is not None
        if given != (self.mode == "slide",) * 2:
            raise ValueError("mode slide needs crop_size and stride, and mode whole has neither")
        if self.crop_size and self.stride and any(s > c for s, c in zip(self.stride, self.crop_size, strict=True)):
            raise ValueError("stride is at most crop_size: windows would leave pixels out")
        return self

    def describe(self) -> str:
        """In words: "whole, mirrored too, at scales 0.5, 1"."""
        words = "whole"
        if self.crop_size and self.stride:
            (height, width), (down, across) = self.crop_size, self.stride
            words = f"in windows of {height} × {width} pixels, {down} and {across} apart"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return words + ", mirrored too" * self.flip + (f", at scales {scales}" if self.scales != (1.0,) else "")


class RoundParams(Group):
    teacher: RoundTeacher = Field(NO_TEACHER, description="none; baseline (of the weak labels); or an earlier round")
    fill_confident: bool = Field(False, description="true: the teacher's confident predictions also label pixels")


class AnnotationMinutes(Group):
    """Annotation minutes per image; null where nobody has measured them."""

    fine: NonNegative | None = Field(None, description="fine masks")
    coarse: NonNegative | None = Field(None, description="coarse polygons")
    scribble: NonNegative | None = Field(None, description="scribbles")
    point: NonNegative | None = Field(None, description="points")
    box: NonNegative | None = Field(None, description="boxes")


class ReportParams(Group):
    num_images: Annotated[int, Field(ge=0, le=MAX_REPORT_IMAGES)] = Field(3, description="images shown per split")


class Runtime(Group):
    """The machine's settings; no stage depends on this group, so that a change reruns nothing."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu or cuda")
    backend: Literal["local", "ray"] = Field("local", description="where images are processed: local or ray")
    num_workers: Positive = Field(8, description="processes that read, compute and write; on a CPU also SAM's threads")
    encoder_batch_size: Positive = Field(8, description="images per call of SAM's encoder, on a GPU")
    compile: bool = Field(True, description="torch.compile for SAM's encoder, in bfloat16 on a GPU")
    embedding_cache: str | None = Field(None, description="absolute path of embeddings; null: data/embeddings")
    embedding_cache_gb: NonNegative = Field(50.0, description="embeddings are kept if all of them take no more")
    training_gpus: Positive = Field(1, description="GPUs of each training, a process each; they share the batch")
    launcher: Literal["torchrun", "srun"] = Field("torchrun", description="what starts these processes; srun: Slurm")

    @field_validator("embedding_cache", mode="after")
    @classmethod
    def _is_absolute(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_absolute():
            raise ValueError("must be an absolute path, because experiments run in other directories")
        return value


class Params(Group):
    seed: Seed = Field(0, description="seed of the networks and of point sampling")
    demo: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], DemoParams] = Field(
        {}, description="demo data sets, drawn to data/raw/NAME; {} for your own data"
    )
    dataset: DatasetParams
    weak_labels: WeakLabelParams = WeakLabelParams()
    network: NetworkParams = NetworkParams()
    schedule: Schedule = Schedule()
    baseline: ScheduleOverride = Field(
        ScheduleOverride(), description="keys of schedule that differ; sweep them as +baseline.max_iters"
    )
    student: StudentParams = StudentParams()
    teacher: TeacherParams = TeacherParams()
    components: ComponentParams = ComponentParams()
    sampling: SamplingParams = SamplingParams()
    sam: SamParams = SamParams()
    selection: SelectionParams = SelectionParams()
    rounds: Annotated[dict[Annotated[str, Field(pattern=r"^r\d+$")], RoundParams], Field(min_length=1)] = {
        "r1": RoundParams(teacher=BASELINE, fill_confident=True)
    }
    evaluation: EvaluationParams = EvaluationParams()
    annotation_minutes: AnnotationMinutes = AnnotationMinutes()
    report: ReportParams = ReportParams()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _groups_agree(self) -> Params:
        earlier = [NO_TEACHER, BASELINE]
        for name, settings in self.rounds.items():
            teacher = f"rounds.{name}.teacher is {settings.teacher}"
            if settings.teacher not in earlier:
                raise ValueError(f"{teacher}, which is not an earlier round")
            if settings.teacher == NO_TEACHER and settings.fill_confident:
                raise ValueError(f"{teacher}, so rounds.{name}.fill_confident must be false")
            if settings.teacher == NO_TEACHER and self.sampling.strategy == "confident":
                raise ValueError(f"sampling.strategy confident needs a teacher in every round; {teacher}")
            earlier.append(name)
        for group in ("baseline", "student"):
            schedule = self.schedule_of(group)
            random = self.network.pretrained is None and (group == "baseline" or self.student.init == "pretrained")
            if schedule.backbone_lr_mult == 0 and random:
                raise ValueError(
                    f"{group} has backbone_lr_mult 0, so its backbone would keep random weights; set network.pretrained"
                )
            if schedule.optimizer == "config" and (self.network.config is None or schedule.backbone_lr_mult != 1):
                raise ValueError("optimizer config needs network.config, and backbone_lr_mult 1: it has its own rates")
        simulated = self.weak_labels.path == FINE_TRAIN_LABELS
        if not simulated and any(self.weak_labels.mix.shares.values()):
            raise ValueError(f"weak_labels.mix is simulated; with it weak_labels.path must be {FINE_TRAIN_LABELS}")
        if self.weak_labels.kind == "fine" and self.weak_labels.path != FINE_TRAIN_LABELS:
            raise ValueError(f"with weak_labels.kind fine, weak_labels.path must be {FINE_TRAIN_LABELS}")
        return self

    @model_validator(mode="after")
    def _concepts(self) -> Params:
        if (self.sampling.prompt_type == "concept") != (self.sam.model == "sam3"):
            raise ValueError(
                f"sam.model {self.sam.model} does not take sampling.prompt_type {self.sampling.prompt_type}: sam3 "
                "takes concept, the others points, box and mask (sam3_tracker with the same weights)"
            )
        if self.weak_labels.mix.none == 1:
            nobody = "weak_labels.mix.none is 1, so nothing is annotated"
            if self.sampling.prompt_type != "concept" or not self.sam.enabled:
                raise ValueError(f"{nobody}: then only concepts prompt SAM (sampling.prompt_type, sam.model sam3)")
            if BASELINE in {settings.teacher for settings in self.rounds.values()}:
                raise ValueError(
                    f"{nobody}: there is no baseline; set rounds.*.teacher to none, fill_confident to false"
                )
        return self

    def schedule_of(self, network: Literal["baseline", "student"]) -> Schedule:
        """`schedule` with the keys that `baseline` or `student` overrides."""
        override = getattr(self, network).model_dump(include=set(Schedule.model_fields), exclude_none=True)
        return self.schedule.model_copy(update=override)

    def check_round(self, round_name: str, *others: str) -> str:
        """round_name, if `rounds` has it, or if it is one of the others; else SesamError."""
        if round_name not in (*self.rounds, *others):
            known = ", ".join((*others, *self.rounds))
            raise SesamError(f"params.yaml: rounds has no entry {round_name!r}; expected one of {known}.")
        return round_name


_RENAMED_SCHEDULE = {
    "iterations": "schedule.max_iters",
    "batch": "schedule.batch_size",
    "crop": "schedule.crop_size",
    "scale": "schedule.scale_range",
    "learning_rate": "schedule.lr",
    "backbone_rate": "schedule.backbone_lr_mult",
}
RENAMED = {
    "draw": "demo",
    "dataset.kind": "dataset.format",
    "dataset.ignore": "dataset.ignore_values",
    "dataset.train": "dataset.train_splits",
    "dataset.val": "dataset.val_splits",
    "weak": "weak_labels (and weak.origin: weak_labels.path)",
    "weak_labels.origin": "weak_labels.path",
    "weak_labels.source": "weak_labels.path",
    "weak_labels.scribble.length": "weak_labels.scribble.length_fraction",
    "network.width": "network.base_channels",
    "network.head_width": "network.head_channels",
    "network.auxiliary": "network.aux_loss_weight",
    **{f"{group}.{old}": new for group in ("teacher", "student", "schedule") for old, new in _RENAMED_SCHEDULE.items()},
    "teacher_labels": "teacher",
    **{f"teacher.{key}": f"baseline.{key}" for key in ScheduleOverride.model_fields},
    "network.precision": "network.dtype",
    "sam.precision": "sam.dtype",
    "student.sam_frequency": "student.sam_sample_prob",
    "selection.tau_weak": "selection.min_coverage",
    "selection.tau_mask": "selection.min_mask_precision",
    "student.start": "student.init (initial is now pretrained)",
    "student.loss": "student.loss_weights",
    "augment": "teacher (and augment.confidence: teacher.confidence_threshold)",
    "components.separate": "components.per_instance",
    "sampling.prompt": "sampling.prompt_type",
    "merging": "sam (merging.sam: sam.enabled)",
    "evaluation": "report (evaluation.panels: report.num_images) and annotation_minutes (evaluation.minutes)",
    "runtime.engine": "runtime.backend",
    "runtime.workers": "runtime.num_workers",
    "runtime.processes": "runtime.training_gpus",
    "runtime.num_gpus": "runtime.training_gpus",
    "runtime.batch": "runtime.encoder_batch_size",
    "runtime.cache": "runtime.embedding_cache",
    "runtime.cache_gb": "runtime.embedding_cache_gb",
}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested params by dotted keys, as `dvc exp run -S` takes them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def load_params(path: Path = Path("params.yaml")) -> Params:
    """The checked params; SesamError with every wrong or missing key.

    All keys must be in the file, so that DVC sees every value that decides a result.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise SesamError(f"{path} is not a mapping of groups. Write one with `sesam init PRESET`.")
    params = validate_params(raw, path)
    defaults, given = flatten(params.model_dump(mode="json")), flatten(raw)
    optional = {f"{group}.{key}" for group in ("baseline", "student") for key in ScheduleOverride.model_fields}
    # the keys of dataset.map are not as they were written: #FF0000 is #ff0000
    missing = [k for k in defaults if k not in given and k not in optional and not k.startswith("dataset.map.")]
    missing += [] if "baseline" in raw else ["baseline"]  # none of its keys need be there
    if missing:
        lines = [f"{key}: missing; the default is {defaults.get(key, {})}" for key in missing]
        raise SesamError("\n  ".join([f"{path} lacks {len(missing)} keys:", *lines]))
    return params


def validate_params(raw: Mapping[str, Any], path: Path) -> Params:
    """Params of a mapping, with defaults for the keys that it lacks; SesamError with every wrong key."""
    try:
        return Params.model_validate(raw)
    except ValidationError as problem:
        lines = describe_validation_error(problem, RENAMED)
        raise SesamError("\n  ".join([f"{path} has {len(lines)} wrong entries:", *lines])) from None


def parse_round(description: str) -> tuple[str, Params]:
    """The ROUND on a stage's command line, and the checked params; SesamError if they lack that round."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("round", help="a key of `rounds` in params.yaml")
    round_name = parser.parse_args().round
    params = load_params()
    return params.check_round(round_name), params
