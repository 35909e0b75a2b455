"""params.yaml as typed groups. Every stage checks the whole file when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sesam.errors import SesamError
from sesam.yaml_io import read_yaml

Precision = Literal["float32", "bfloat16"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=10_000_000)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Channels = Annotated[int, Field(ge=2, le=4096)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Factor = Annotated[float, Field(gt=0, le=16)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
DrawnName = Annotated[str, Field(pattern=r"^[\w-]+$")]
RoundName = Annotated[str, Field(pattern=r"^r\d+$")]
Byte = Annotated[int, Field(ge=0, le=255)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Color = Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]  # "#rrggbb"


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


STUDENTS = "models/student/"
NO_TEACHER = "data/weak"  # a path, because DVC depends on what stands there
FINE_LABELS = "data/fine/train"  # where weak labels are drawn from unless annotators made them


class Round(Group):
    teacher: str = Field(description="network whose predictions it starts from; data/weak: none, weak labels alone")
    labels: bool = Field(description="its confident predictions also label pixels; false: they only prompt SAM")


class Draw(Group):
    """A demo data set drawn into data/raw/NAME."""

    train: Positive
    val: Positive
    seed: Seed


class DatasetParams(Group):
    kind: Literal["cityscapes", "ade20k", "voc", "camvid", "folder"] = Field(
        description="whose layout it has (sesam/datasets/layouts.py); folder: images/ and labels/ of one's own"
    )
    root: str = Field(description="the folder that its maker names")
    train: list[str] | None = Field(description="the maker's splits to train on; none: the usual ones")
    val: list[str] | None = Field(description="the maker's splits to validate on; none: the usual one")
    subset: float | list[str] | None = Field(description="training images to use: a share of them, or their ids")
    exclude: list[str] = Field(description="ids of images to leave out of every split")
    classes: Annotated[list[str], Field(min_length=2, max_length=255)] | None = Field(
        description="of a folder, in id order; the others' are known"
    )
    palette: list[Color] | None = Field(description="of a folder, '#rrggbb' a class; none: from the color wheel")
    ignore: list[Byte] = Field(description="of a folder, label values that mean 'no class'")

    @field_validator("subset", "exclude", mode="before")
    @classmethod
    def _ids_are_text(cls, value: object) -> object:
        if isinstance(value, list) and any(not isinstance(k, str) for k in value):
            raise ValueError('image ids must stand in quotes, as "2007_000032"; YAML reads numbers without them')
        return value

    @field_validator("subset", mode="after")
    @classmethod
    def _share(cls, value: float | list[str] | None) -> float | list[str] | None:
        if isinstance(value, float) and not 0 < value <= 1:
            raise ValueError("a share must be above 0 and at most 1")
        if value == []:
            raise ValueError("no id is given; null takes all images")
        return value

    @model_validator(mode="after")
    def _classes_of_a_folder(self) -> DatasetParams:
        if self.kind != "folder":
            if self.classes is not None or self.palette is not None:
                raise ValueError(f"classes and palette of {self.kind} are known; both must be null")
            return self
        if self.classes is None:
            raise ValueError("a folder needs classes, in id order")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have one name")
        if self.palette is not None and len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.palette)} palette colors for {len(self.classes)} classes")
        if shared := [k for k in self.ignore if k < len(self.classes)]:
            raise ValueError(f"ignore holds {shared}, which are class ids; classes are 0 to {len(self.classes) - 1}")
        return self


class Coarse(Group):
    erosion: Share = Field(description="erosion radius as a share of the square root of the region's area")
    tolerance: NotNegative = Field(description="how far the polygon may leave the eroded outline, same unit")


class Scribble(Group):
    length: Annotated[float, Field(gt=0, le=1)] = Field(description="share of the skeleton's longest path")
    thickness: Pixels = Field(description="pixels, also of annotators' strokes that come as lines")
    margin: Share = Field(description="distance kept from the region's edge, as a share of its greatest depth")


class Point(Group):
    radius: Annotated[int, Field(ge=0, le=8192)] = Field(description="pixels, also of annotators' clicks; 0: one pixel")


class Minutes(Group):
    """Annotation minutes per image; null where nobody has measured them."""

    fine: NotNegative | None
    coarse: NotNegative | None
    scribble: NotNegative | None
    point: NotNegative | None


class Weak(Group):
    kind: Literal["coarse", "scribble", "point", "fine"] = Field(description="what annotators drew; fine: to compare")
    origin: str = Field(description="data/fine/train: drawn from the fine labels; or where annotators' labels lie")
    min_area: Positive = Field(description="pixels; smaller regions get no label drawn, but a fine one")
    coarse: Coarse
    scribble: Scribble
    point: Point


RESNETS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}


class Architecture(Group):
    """DeepLabV3+. What a trained network's folder says of it, too."""

    backbone: str = Field(description="resnet18, 34, 50 or 101: mmsegmentation's ResNetV1c; any other: timm's model")
    width: Channels | None = Field(description="channels of a ResNet's first stage; 64 as published; null for timm's")
    head_width: Channels = Field(description="channels of the ASPP head; 512 is the published network")
    output_stride: Literal[8, 16] = Field(description="image pixels a feature pixel; 16 is cheaper and coarser")
    auxiliary: Share = Field(description="weight of the auxiliary head's loss; 0 leaves the head out, which is cheaper")

    @model_validator(mode="after")
    def _width_of_a_resnet(self) -> Architecture:
        if (self.backbone in RESNETS) != (self.width is not None):
            wanted = "a number" if self.backbone in RESNETS else "null, for timm's models have their own"
            raise ValueError(f"with backbone {self.backbone} width must be {wanted}")
        return self


class Network(Architecture):
    """The same for teacher and student."""

    precision: Precision = Field(description="of a training's matrix products; bfloat16 needs a GPU")
    pretrained: str | None = Field(description="the backbone's weights: a file, package:NAME, an address, or none")
    sha256: Sha256 | None = Field(description="of a file of weights: by it DVC sees that they are others")

    @model_validator(mode="after")
    def _which_file(self) -> Network:
        a_file = self.pretrained is not None and "://" not in self.pretrained and "package:" not in self.pretrained
        fetched = self.pretrained is None or "://" in self.pretrained
        if (a_file and self.sha256 is None) or (self.sha256 and fetched):
            raise ValueError("a file in pretrained needs its sha256, and sha256 a file (`sha256sum FILE` tells)")
        return self


class Schedule(Group):
    iterations: Positive
    batch: Annotated[int, Field(ge=2, le=4096)]
    crop: Annotated[tuple[Pixels, Pixels], Field(strict=False)] = Field(description="height, width in pixels")
    scale: Annotated[tuple[Factor, Factor], Field(strict=False)] = Field(description="range of the random resize")
    optimizer: Literal["sgd", "adamw"] = Field(description="sgd is published; adamw suits short trainings")
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    backbone_rate: Annotated[float, Field(gt=0, le=1)] = Field(description="the backbone's share of learning_rate")


class LossWeights(Group):
    """λ of the three-source loss."""

    weak: NotNegative
    sam: NotNegative
    confident: NotNegative


class Student(Schedule):
    start: Literal["initial", "teacher"] = Field(description="weights to start from; teacher: those of the round's")
    loss: LossWeights
    sam_frequency: Share


class Augment(Group):
    confidence: Share = Field(description="γ; compared in steps of 1/255, as confidence is stored")


class Components(Group):
    separate: bool = Field(description="one prompt per connected component; false: one per class")
    connectivity: Literal[4, 8] = Field(description="neighbors that make pixels one component")
    min_area: Positive = Field(description="pixels; smaller components without a weak label are dropped")


class Sampling(Group):
    prompt: Literal["points", "box", "mask"]
    strategy: Literal["skeleton", "random", "confident", "deepest"]
    num_points: Positive


class SamParams(Group):
    model: str = Field(description="a key of MODELS in sesam/sam/registry.py")
    checkpoint: str | None = Field(description="a file with weights of one's own; null: the published ones")
    sha256: Sha256 | None = Field(description="of a checkpoint of one's own: by it DVC sees that weights are others")
    precision: Precision = Field(description="of the image encoder's matrix products; the decoder is float32")

    @model_validator(mode="after")
    def _weights_of_ones_own(self) -> SamParams:
        if (self.checkpoint is None) != (self.sha256 is None):
            raise ValueError("checkpoint and sha256 go together: both null, or both given (`sha256sum FILE` tells)")
        return self


class Selection(Group):
    tau_mask: Share = Field(description="τ1, least |M∩C|/|M| for a component C without weak labels")
    tau_weak: Share = Field(description="τ2, least |M∩W|/|W| for C's weak labels W; without any, |M∩C|/|C|")
    max_conflict: Share = Field(description="greatest share of M's weak labels that may be of another class")


class Merging(Group):
    sam: bool = Field(description="false: weak labels and confident predictions alone; SAM is not prompted")


class Evaluation(Group):
    panels: Annotated[int, Field(ge=0)] = Field(description="images shown side by side, of each split")
    minutes: Minutes


class Runtime(Group):
    """What must not change a result; no stage lists this group."""

    device: Literal["auto", "cpu", "cuda"]
    engine: Literal["local", "ray"] = Field(description="where the work on images runs: this machine, or Ray's workers")
    workers: Positive = Field(description="processes that read, compute and write files; on a CPU also SAM's threads")
    batch: Positive = Field(description="images that SAM encodes at once on a GPU")
    compile: bool = Field(description="torch.compile for SAM's encoder, in bfloat16 on a GPU")
    cache: str | None = Field(description="absolute folder of SAM's embeddings; none: data/embeddings of this checkout")
    cache_gb: NotNegative = Field(description="SAM embeddings are kept on disk if all of them take no more, in GB")
    processes: Positive = Field(description="of a training, one a GPU; its batch is shared out among them")
    launcher: Literal["torchrun", "srun"] = Field(description="starts them; srun: those of a Slurm job")

    @field_validator("cache", mode="after")
    @classmethod
    def _wherever_it_is_asked(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_absolute():
            raise ValueError("experiments run in folders of their own; it must be an absolute path")
        return value


class Params(Group):
    seed: Seed
    draw: dict[DrawnName, Draw]
    dataset: DatasetParams
    weak: Weak
    network: Network
    teacher: Schedule
    augment: Augment
    components: Components
    sampling: Sampling
    sam: SamParams
    selection: Selection
    merging: Merging
    student: Student
    evaluation: Evaluation
    rounds: Annotated[dict[RoundName, Round], Field(min_length=1)]
    runtime: Runtime

    @model_validator(mode="after")
    def _teachers_of_rounds(self) -> Params:
        untaught = [name for name, one in self.rounds.items() if one.teacher == NO_TEACHER]
        if untaught and self.sampling.strategy == "confident":
            where = f"rounds.{untaught[0]}.teacher is {NO_TEACHER}; models/teacher is the network of the weak labels"
            raise ValueError(f"sampling.strategy confident needs a teacher in every round; {where}")
        for name, one in self.rounds.items():
            if one.teacher.startswith(STUDENTS) and (of := one.teacher.removeprefix(STUDENTS)) not in self.rounds:
                raise ValueError(f"rounds.{name}.teacher is the student of {of}, which is no round (any more)")
        if pointless := [name for name in untaught if self.rounds[name].labels]:
            raise ValueError(f"rounds.{pointless[0]}.labels is true, but the round has no teacher; set it to false")
        if self.weak.kind == "fine" and self.weak.origin != FINE_LABELS:
            raise ValueError(f"weak.kind fine means the fine labels themselves; weak.origin must be {FINE_LABELS}")
        return self


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
    """The checked params; SesamError naming every wrong key."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise SesamError(f"{path} is not a mapping of groups. Copy one of presets/*.yaml over it.")
    try:
        return Params.model_validate(raw)
    except ValidationError as problem:
        raise SesamError(
            "\n  ".join([f"{path} has {problem.error_count()} wrong entries:", *format_errors(problem)])
        ) from None


def format_errors(problem: ValidationError) -> list[str]:
    reasons = {
        "extra_forbidden": "unknown key; remove it or correct its spelling",
        "missing": "missing; add it (presets/*.yaml show every key)",
    }
    return [
        f"{'.'.join(map(str, error['loc'])) or '(whole file)'}: "
        + reasons.get(error["type"], f"{error['msg']}, got {error['input']!r:.500}")
        for error in problem.errors()
    ]
