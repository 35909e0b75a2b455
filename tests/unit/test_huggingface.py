"""SAM 2.1, HQ-SAM and SAM 3's tracker, small and random, against transformers with the same prompts."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from sesam.artifacts.atomic_io import sha256
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.geometry.rle import counts_to_rle, mask_to_rle
from sesam.params import SamParams
from sesam.sam.checkpoints import resolve_weights
from sesam.sam.huggingface import FAMILIES, HuggingFaceSegmenter
from sesam.sam.registry import MODELS
from sesam.sam.segmenter import Prompt

CPU = torch.device("cpu")


DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "window_size": 4,
    "global_attn_indexes": [1],
}


def small_sam2() -> transformers.Sam2Model:
    side, dims = 128, [8, 16, 32, 64]
    backbone = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [side, side]}
    backbone |= {"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": dims, "window_size_per_stage": [4, 4, 4, 4]}
    backbone |= {"num_attention_heads_per_stage": [1, 1, 2, 2], "global_attention_blocks": [3]}
    vision = {"backbone_config": backbone, "backbone_channel_list": dims[::-1], "fpn_hidden_size": 32}
    vision |= {"backbone_feature_sizes": [[side // k, side // k] for k in (4, 8, 16)]}
    prompts = {"hidden_size": 32, "image_size": side}
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    return transformers.Sam2Model(config)


def small_hq() -> transformers.SamHQModel:
    vision = {**VIT, "output_channels": 32, "image_size": 128, "patch_size": 16, "num_pos_feats": 16}
    prompts = {"hidden_size": 32, "image_size": 128, "patch_size": 16}
    config = transformers.SamHQConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config={**DECODER, "vit_dim": 32}
    )
    return transformers.SamHQModel(config)


def small_sam3() -> transformers.Sam3TrackerModel:
    backbone = {**VIT, "model_type": "sam3_vit_model", "intermediate_size": 32, "patch_size": 14}
    backbone |= {"image_size": 112, "pretrain_image_size": 112}
    vision = {"model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32}
    vision |= {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
    prompts = {"hidden_size": 32, "image_size": 112, "patch_size": 14}
    config = transformers.Sam3TrackerConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER
    )
    return transformers.Sam3TrackerModel(config)


SMALL = {
    "sam2": (small_sam2, transformers.Sam2Processor),
    "sam_hq_b": (small_hq, transformers.SamHQProcessor),
    "sam3_tracker": (small_sam3, transformers.Sam3TrackerProcessor),
}


@pytest.fixture(scope="module", params=SMALL)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, SamParams]:
    """A small model with weights that make masks of many shapes, in a folder as published, and its params."""
    torch.manual_seed(0)
    build, _ = SMALL[request.param]
    model = build().eval()
    for value in model.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.3)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    sam = SamParams(model=request.param, checkpoint=str(weights), sha256=sha256(weights), precision="float32")
    return request.param, folder, sam


@pytest.fixture
def segmenter(saved: tuple[str, Path, SamParams]) -> HuggingFaceSegmenter:
    name, _, sam = saved
    return MODELS[name].load(resolve_weights(sam).path, CPU, sam, None)


def test_masks_equal_those_of_transformers(saved: tuple, segmenter: HuggingFaceSegmenter) -> None:
    images = [draw_scene(k).image[: 200 - 60 * k, : 256 - 30 * k] for k in range(2)]
    rng = np.random.default_rng(0)
    sizes = [image.shape[:2] for image in images]
    points = [[Prompt(points=rng.integers(0, (w, h), (n, 2))) for n in (5, 2, 5)] for h, w in sizes]
    boxes = [np.array([10, 20, 60, 90]), np.array([0, 5, 100, 120])]
    prompts = [[*of_image, Prompt(box=box)] for of_image, box in zip(points, boxes, strict=True)]
    embeddings = segmenter.encode([segmenter.preprocess(image) for image in images])
    assert all(embedding.dtype == torch.float16 for embedding in embeddings)
    decoded = segmenter.decode(embeddings, sizes, prompts)

    model, processor = segmenter.model, SMALL[saved[0]][1](image_processor=segmenter.processor)
    processor.target_size = segmenter.side
    num_different, all_masks = 0, []
    cases = [(k, *case) for k in range(2) for case in zip(prompts[k], decoded[k], strict=True)]
    for k, prompt, candidates in cases:
        if prompt.points is not None:
            arguments = {"input_points": [[prompt.points.tolist()]], "input_labels": [[[1] * len(prompt.points)]]}
        else:
            arguments = {"input_boxes": [[prompt.box.tolist()]]}
        inputs = processor(images=images[k], return_tensors="pt", **arguments)
        model_inputs = {key: value for key, value in inputs.items() if key in ("pixel_values", *arguments)}
        with torch.inference_mode():
            out = model(**model_inputs, multimask_output=True)
        resized = [inputs["reshaped_input_sizes"]] if "reshaped_input_sizes" in inputs else []
        (masks,) = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], *resized)
        assert np.allclose(out.iou_scores.flatten().numpy(), candidates.iou, atol=0.02)  # embeddings are float16
        for expected, counts in zip(masks.flatten(0, 1).numpy(), candidates.counts, strict=True):
            mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(sizes[k][::-1]).T
            assert mask_to_rle(mask) == counts_to_rle(counts, sizes[k])
            num_different += (mask != expected).sum()
            all_masks.append(expected)
    informative = {mask.tobytes() for mask in all_masks if 0.02 < mask.mean() < 0.98}
    assert len(informative) > len(all_masks) / 2  # neither empty nor full, and different for each prompt
    assert num_different <= 2e-3 * sum(mask.size for mask in all_masks)


def test_prompts_are_independent_of_each_other(segmenter: HuggingFaceSegmenter) -> None:
    image = draw_scene(3).image
    size = image.shape[:2]
    (embedding,) = segmenter.encode([segmenter.preprocess(image)])

    def decode(*prompts: Prompt) -> list[list[list[int]]]:
        (decoded,) = segmenter.decode([embedding], [size], [prompts])
        return [[counts.tolist() for counts in candidates.counts] for candidates in decoded]

    mask = np.zeros(size, bool)
    mask[30:90, 40:200] = True
    points = [Prompt(points=np.array([[40, 50], [60, 70]])), Prompt(points=np.array([[9, 9]]))]
    prompts = [points[0], Prompt(mask=mask_to_rle(mask)), points[1]]
    together = decode(*prompts)
    assert together == [decode(prompt)[0] for prompt in prompts]
    assert decode(Prompt(mask=mask_to_rle(~mask)))[0] != together[1]
    assert decode() == []


def test_embedding_bytes_are_those_of_the_published_sizes() -> None:
    """transformers' default configs are those of the published models."""
    sam2, sam3 = transformers.Sam2Config().vision_config, transformers.Sam3TrackerConfig().vision_config
    hq = transformers.SamHQConfig().vision_config
    for name, vision in (("sam2", sam2), ("sam3_tracker", sam3)):
        channels = (vision.fpn_hidden_size // 8, vision.fpn_hidden_size // 4, vision.fpn_hidden_size)
        values = sum(c * h * w for c, (h, w) in zip(channels, vision.backbone_feature_sizes, strict=True))
        assert MODELS[name].embedding_bytes == 2 * values
    grid = hq.image_size // hq.patch_size
    assert MODELS["sam_hq_b"].embedding_bytes == 2 * grid**2 * (hq.output_channels + hq.hidden_size)


def test_missing_and_damaged_weights_are_reported(saved: tuple, tmp_path: Path) -> None:
    name, folder, sam = saved
    with pytest.raises(SesamError, match=r"Set sam\.checkpoint to the model\.safetensors"):
        resolve_weights(SamParams(model=name, checkpoint=None, sha256=None, precision="float32"))
    weights = tmp_path / "model.safetensors"
    for content in (b"", (folder / "model.safetensors").read_bytes()[:5000]):
        weights.write_bytes(content)
        for config in (None, "{", "{}", (folder / "config.json").read_text()):
            if config is not None:
                (tmp_path / "config.json").write_text(config)
            with pytest.raises(SesamError, match=r"does not hold .*Check sam\.checkpoint"):
                MODELS[name].load(weights, CPU, sam, None)
    other = next(model for model in SMALL if model != name)
    with pytest.raises(SesamError, match="does not hold"):
        MODELS[other].load(folder / "model.safetensors", CPU, sam.model_copy(update={"model": other}), None)


def test_missing_transformers_is_reported(saved: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder, sam = saved
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SesamError, match=r"pip install -c constraints\.txt -e '\.\[transformers\]'"):
        MODELS[name].load(folder / "model.safetensors", CPU, sam, None)


def test_every_family_has_a_model() -> None:
    assert {name.removesuffix("_b") for name in MODELS} >= FAMILIES.keys()
