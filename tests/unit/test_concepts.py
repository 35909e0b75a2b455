"""SAM 3 by concept, small and random, against transformers; and the components of concepts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from test_huggingface import SAM3

from sesam.api import load_sam, pseudo_label
from sesam.artifacts.atomic_io import sha256, write_json
from sesam.artifacts.component_records import Candidate, Component, read_prompts, write_prompts
from sesam.artifacts.drawn_prompts import DrawnBox, DrawnPrompts
from sesam.artifacts.manifest import ImageRecord
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.geometry.rle import counts_to_rle, mask_to_rle, rle_to_mask
from sesam.merging import merge_labels
from sesam.params import Params, SamParams
from sesam.prompting import image_prompts
from sesam.reporting.trace import describe_candidate
from sesam.sam import concepts
from sesam.sam.concepts import ConceptSam
from sesam.sam.registry import MODELS
from sesam.sam.sam_model import Prompt
from sesam.selection import select_candidate, weak_masks_by_class
from stages import train_student

CPU = torch.device("cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
SMALL = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"model_type": "clip_text_model", "hidden_size": 32, "intermediate_size": 32, "projection_dim": 16}
TEXT |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32, "vocab_size": len(TOKENS)}
TEXT |= {"bos_token_id": len(TOKENS) - 2, "eos_token_id": len(TOKENS) - 1, "pad_token_id": len(TOKENS) - 1}


def small_model() -> torch.nn.Module:
    """With weights by which some instances score more than a half, others less."""
    torch.manual_seed(0)
    config = transformers.Sam3Config(
        vision_config=SAM3,
        text_config=TEXT,
        geometry_encoder_config=SMALL,
        detr_encoder_config=SMALL,
        detr_decoder_config={**SMALL, "num_queries": 8},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    model = transformers.Sam3Model(config).eval()
    for value in model.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.3)
    torch.nn.init.normal_(model.detr_decoder.query_embed.weight, std=3)
    with torch.no_grad():
        model.detr_decoder.presence_head.layer3.bias.fill_(4)
        model.dot_product_scoring.query_proj.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> SamParams:
    """Of a small model in a folder as published."""
    weights = tmp_path_factory.mktemp("sam3") / "model.safetensors"
    small_model().save_pretrained(weights.parent)
    transformers.CLIPTokenizer(vocab={token: k for k, token in enumerate(TOKENS)}, merges=[]).save_pretrained(
        weights.parent
    )
    return SamParams(model="sam3", checkpoint=str(weights), sha256=sha256(weights), dtype="float32")


def load(sam: SamParams, weights: Path | None = None) -> ConceptSam:
    return MODELS["sam3"].load(weights or Path(sam.checkpoint), CPU, sam, None)


def test_masks_are_the_union_of_the_instances_of_transformers(sam: SamParams) -> None:
    model, sam_model = small_model(), load(sam)
    processor = transformers.Sam3Processor(sam_model.preprocess.keywords["processor"], sam_model.tokenizer)
    images = [draw_scene(k).image[: 200 - 60 * k, : 256 - 30 * k] for k in range(2)]
    sizes = [image.shape[:2] for image in images]
    boxes = np.array([[10, 20, 60, 90], [0, 5, 100, 120]])
    prompts = [Prompt(concept="car"), Prompt(concept="road", exemplars=boxes), Prompt(concept="traffic sign")]
    decoded = sam_model.decode(
        sam_model.encode([sam_model.preprocess(image) for image in images]), sizes, [prompts, prompts[::-1]]
    )
    different, areas, found = 0, [], []
    cases = [(0, *case) for case in zip(prompts, decoded[0], strict=True)]
    cases += [(1, *case) for case in zip(prompts[::-1], decoded[1], strict=True)]
    for k, prompt, masks in cases:
        given = {} if prompt.exemplars is None else {"input_boxes": [prompt.exemplars.tolist()]}
        inputs = processor(images=images[k], text=prompt.concept, return_tensors="pt", **given)
        inputs.pop("original_sizes")
        with torch.inference_mode():
            out = model(**inputs)
        (expected,) = processor.post_process_instance_segmentation(out, threshold=0.5, target_sizes=[sizes[k]])
        (counts,) = masks.counts
        mask = rle_to_mask(counts_to_rle(counts, sizes[k]), sizes[k])
        union = expected["masks"].any(0).numpy() if len(expected["scores"]) else np.zeros(sizes[k], bool)
        different += (mask != union).mean()
        areas.append(round(float(mask.mean()), 6))
        found.append(len(expected["scores"]))
        if found[-1]:
            assert masks.predicted_iou == pytest.approx([expected["scores"].mean().item()], abs=1e-2)
    assert len(set(areas)) >= 4 and 0 < sum(found) < 8 * len(found)
    assert different <= 2e-3 * len(cases)  # embeddings are float16


def test_prompts_are_independent_of_each_other(sam: SamParams, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = draw_scene(3)
    box = np.array([[10, 20, 60, 90]])
    prompts = [Prompt(concept="a"), Prompt(concept="b", exemplars=box), Prompt(concept="c"), Prompt(concept="a")]

    def decode(*of_image: Prompt) -> list[bytes]:
        sam_model = load(sam)
        embeddings = sam_model.encode([sam_model.preprocess(scene.image)])
        (decoded,) = sam_model.decode(embeddings, [scene.image.shape[:2]], [of_image])
        return [masks.counts[0].tobytes() for masks in decoded]

    alone = [decode(prompt)[0] for prompt in prompts]
    assert decode(*prompts) == alone and alone[0] == alone[3]
    monkeypatch.setitem(concepts.PROMPTS_PER_CALL, "cpu", 4)
    together = decode(*prompts)
    size = scene.image.shape[:2]
    for one, other in zip(together, alone, strict=True):
        masks = [rle_to_mask(counts_to_rle(np.frombuffer(x, np.int64), size), size) for x in (one, other)]
        assert (masks[0] != masks[1]).mean() < 1e-3
    assert decode() == []


def test_batches_are_filled_so_that_one_shape_is_compiled(sam: SamParams, monkeypatch: pytest.MonkeyPatch) -> None:
    sam_model, shapes = load(sam), []
    encoder = sam_model.embed
    monkeypatch.setattr(sam_model, "embed", lambda pixels: shapes.append(len(pixels)) or encoder(pixels))
    sam_model.image_batcher.batch_size = 2
    images = [sam_model.preprocess(draw_scene(k).image) for k in range(3)]
    assert len(sam_model.encode(images)) == 3 and shapes == [2, 2]


def test_a_concept_without_an_instance_has_no_pixel() -> None:
    masks = concepts.unite(torch.tensor([0.2, 0.5]), torch.full((2, 4, 4), 9.0), (10, 12))
    assert masks.counts[0].tolist() == [120] and masks.predicted_iou == np.float32(0.5)


def test_embedding_bytes_are_those_of_the_published_size() -> None:
    vision = transformers.Sam3Config().vision_config.backbone_config
    assert MODELS["sam3"].embedding_bytes == 2 * vision.hidden_size * (vision.image_size // vision.patch_size) ** 2


def test_incomplete_folders_are_reported(sam: SamParams, tmp_path: Path) -> None:
    published, weights = Path(sam.checkpoint), tmp_path / "model.safetensors"
    weights.write_bytes(published.read_bytes())
    with pytest.raises(SesamError, match="does not hold Sam3Model"):
        load(sam, weights)
    (tmp_path / "config.json").write_text(published.with_name("config.json").read_text())
    for content in (None, "", "{}"):
        if content is not None:
            (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(SesamError, match=r"does not hold SAM 3's tokenizer .* beside model\.safetensors"):
            load(sam, weights)


@pytest.fixture
def of_concepts(params: Params) -> Params:
    """The demo's params, prompting SAM 3 with concepts."""
    weights = {"model": "sam3", "checkpoint": "a", "sha256": "0" * 64}
    return Params.model_validate(params.model_dump() | {"sampling": {"prompt_type": "concept"}, "sam": weights})


@pytest.mark.parametrize(
    "change", [{"sam": {"model": "sam2", "checkpoint": "a", "sha256": "0" * 64}}, {"sampling": {}}]
)
def test_sam3_takes_concepts_and_no_other_model_does(of_concepts: Params, change: dict) -> None:
    with pytest.raises(ValueError, match=r"sam\.model sam\d does not take sampling\.prompt_type"):
        Params.model_validate(of_concepts.model_dump(exclude=set(change)) | change)


def test_components_are_the_classes_of_an_image(of_concepts: Params) -> None:
    weak = np.full((60, 80), 255, np.uint8)
    weak[10:30, 10:40], weak[40:50, 5:20], weak[40:50, 50:60] = 2, 0, 2
    unknown, confidence, names = np.full_like(weak, 255), np.zeros_like(weak), ("road", "car", "traffic_sign")

    def components(weak: np.ndarray, params: Params, drawn: DrawnPrompts | None = None) -> list[Component]:
        given = [] if drawn is None else [drawn]
        classes = {"classes": names}
        return image_prompts(weak, unknown, confidence, params, ("r1", "7"), *given, **classes)

    def component(number: int, k: int, exemplars: list | None = None) -> Component:
        return Component(number, k, mask_to_rle(weak == k), concept=names[k].replace("_", " "), exemplars=exemplars)

    assert components(weak, of_concepts) == [component(1, 0), component(2, 2)]
    assert [x.concept for x in components(unknown, of_concepts)] == ["road", "car", "traffic sign"]
    sampling = of_concepts.sampling.model_copy(update={"exemplars": True})
    with_exemplars = components(weak, of_concepts.model_copy(update={"sampling": sampling}))
    assert with_exemplars == [component(1, 0, [(5, 40, 20, 50)]), component(2, 2, [(10, 10, 40, 30), (50, 40, 60, 50)])]
    drawn = DrawnPrompts([DrawnBox(1, (3, 4, 30, 40))], [])
    inside = unknown == 1
    inside[4:40, 3:30] = True
    boxed = Component(1, 1, mask_to_rle(inside), drawn_box=True, concept="car", exemplars=[(3, 4, 30, 40)])
    assert components(unknown, of_concepts, drawn) == [boxed]
    weak[59, 79] = 1  # beside a stroke, the box does not limit the class
    boxed = component(2, 1, [(3, 4, 30, 40)])
    assert components(weak, of_concepts, drawn)[1] == replace(boxed, rle=mask_to_rle(inside | (weak == 1)))


def test_nothing_annotated_needs_concepts_and_no_teacher(of_concepts: Params) -> None:
    nobody = of_concepts.model_dump() | {"weak_labels": {"mix": {"none": 1.0}}}
    Params.model_validate(nobody)
    taught = {"rounds": {"r1": {"teacher": "baseline", "fill_confident": True}}}
    disabled = {"sam": nobody["sam"] | {"enabled": False}}
    for change, remedy in ((taught, "teacher to none"), (disabled, "only concepts prompt SAM")):
        with pytest.raises(ValueError, match=remedy):
            Params.model_validate(nobody | change)


@pytest.mark.parametrize(("prompt_type", "ratio"), [("concept", 0.5), ("points", 0)])
def test_concepts_label_images_without_annotation_for_a_student(
    of_concepts: Params, monkeypatch: pytest.MonkeyPatch, prompt_type: str, ratio: float
) -> None:
    sampling = of_concepts.sampling.model_copy(update={"prompt_type": prompt_type})
    student = of_concepts.student.model_copy(update={"unannotated_ratio": 0.5})
    params = of_concepts.model_copy(update={"sampling": sampling, "student": student})
    tasks = []
    monkeypatch.setattr(train_student, "parse_round", lambda text: ("r1", params))
    monkeypatch.setattr(train_student, "train", lambda task, params: tasks.append(task))
    train_student.main()
    assert [task.unannotated_ratio for task in tasks] == [ratio]


def test_pseudo_label_needs_the_names_of_the_classes(sam: SamParams) -> None:
    scene = draw_scene(3)
    sam_model = load_sam("sam3", sam.checkpoint, device="cpu")
    weights = {"model": "sam3", "checkpoint": sam.checkpoint, "sha256": sam.sha256}
    params = {"sampling": {"prompt_type": "concept"}, "sam": weights}
    unlabeled = np.full_like(scene.labels, 255)
    with pytest.raises(SesamError, match="0 names"):
        pseudo_label(scene.image, unlabeled, sam_model, params=params)
    params |= {"dataset": {"classes": ["road", "car"]}}
    found = pseudo_label(scene.image, unlabeled, sam_model, params=params)
    assert [component.concept for component in found.components] == ["road", "car"]
    with pytest.raises(SesamError, match="2 names"):
        pseudo_label(scene.image, scene.labels, sam_model, params=params)


def test_records_of_concepts_are_read_back_and_checked(tmp_path: Path) -> None:
    record, path = ImageRecord("7", "7.png", 10, 12, "0" * 64), tmp_path / "7.json"
    component = Component(1, 0, mask_to_rle(np.zeros((10, 12), bool)), concept="car", exemplars=[(0, 0, 12, 10)])
    write_prompts(path, record, "concept", [component])
    assert read_prompts(path, record) == [component]
    write_prompts(path, record, "concept", [boxed := replace(component, drawn_box=True)])
    assert read_prompts(path, record) == [boxed]
    for change in (
        {"exemplars": [[0, 0, 13, 10]]},
        {"exemplars": []},
        {"concept": ""},
        {"concept": None, "points": [[1, 1]]},
    ):
        (known,) = [{"number": 1, "class_id": 0, "rle": component.rle, "concept": "car"}]
        document = {"id": "7", "height": 10, "width": 12, "prompt": "concept", "components": [known | change]}
        write_json(path, document)
        with pytest.raises(SesamError, match="damaged"):
            read_prompts(path, record)


def test_masks_of_a_class_that_nobody_labeled_are_kept_and_the_better_one_labels(of_concepts: Params) -> None:
    weak = np.full((10, 12), 255, np.uint8)
    nothing, left, right = weak == 0, weak == 255, weak == 255
    left[:, 8:], right[:, :4] = False, False
    components = [Component(n, n, mask_to_rle(nothing), concept=str(n)) for n in range(3)]
    candidates = [Candidate(score, mask_to_rle(mask)) for score, mask in ((0.6, left), (0.9, right), (0.4, nothing))]
    chosen = [
        select_candidate(component, [candidate], weak_masks_by_class(weak), of_concepts.selection)[0]
        for component, candidate in zip(components, candidates, strict=True)
    ]
    assert [selected.outcome for selected in chosen] == ["kept", "kept", "low_coverage"]
    labels, _ = merge_labels(np.zeros((*weak.shape, 3), np.uint8), weak, weak, components, chosen)
    assert (labels[:, :4] == 0).all() and (labels[:, 4:] == 1).all()
    boxes = replace(components[1], rle=mask_to_rle(right & left), drawn_box=True)  # its mask is cut to them
    nobody = weak_masks_by_class(weak)
    selected, (scored,) = select_candidate(boxes, candidates[1:2], nobody, of_concepts.selection)
    assert selected.kept and scored.candidate.rle == boxes.rle and selected.rle == boxes.rle
    assert describe_candidate(scored, of_concepts.selection).endswith("fits, as no pixel of its class is labeled")
    weak[2, 9:11] = 0  # now an annotator's stroke says where class 0 is, and the mask does not hold it
    drawn = Component(0, 0, mask_to_rle(weak == 0), concept="0")
    selected, _ = select_candidate(drawn, [candidates[0]], weak_masks_by_class(weak), of_concepts.selection)
    assert selected.outcome == "low_coverage"
