"""SAM 2.1, HQ-SAM and SAM 3's tracker, small and random, against what transformers itself makes of the same prompts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Sam2Config,
    Sam2Model,
    Sam2Processor,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
)

from sesam.artifacts.atomic_io import sha256
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.geometry.rle import counts_to_rle, mask_to_rle
from sesam.params import SamParams
from sesam.sam.checkpoints import resolve_weights
from sesam.sam.huggingface import FAMILIES
from sesam.sam.registry import MODELS
from sesam.sam.segmenter import Prompt

CPU = torch.device("cpu")


def small_sam2() -> Sam2Model:
    side, dims = 128, [8, 16, 32, 64]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [side, side],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": dims,
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": dims[::-1],
        "backbone_feature_sizes": [[side // k, side // k] for k in (4, 8, 16)],
        "fpn_hidden_size": 32,
    }
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    prompts = {"hidden_size": 32, "image_size": side}
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def small_hq() -> SamHQModel:
    side = 128
    vision = {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 16,
        "global_attn_indexes": [1],
        "window_size": 4,
        "num_pos_feats": 16,
    }
    prompts = {"hidden_size": 32, "image_size": side, "patch_size": 16}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32, "vit_dim": 32}
    return SamHQModel(SamHQConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def small_sam3() -> Sam3TrackerModel:
    side = 112
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "pretrain_image_size": side,
        "patch_size": 14,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    prompts = {"hidden_size": 32, "image_size": side, "patch_size": 14}
    return Sam3TrackerModel(
        Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )


SMALL = {
    "sam2": (small_sam2, Sam2Processor),
    "sam_hq_b": (small_hq, SamHQProcessor),
    "sam3_tracker": (small_sam3, Sam3TrackerProcessor),
}


@pytest.fixture(scope="module", params=SMALL)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small model with weights that make masks of many shapes, in a folder as its maker ships it."""
    torch.manual_seed(0)
    build, _ = SMALL[request.param]
    model = build().eval()
    for value in model.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.3)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, folder


def params_of(name: str, folder: Path) -> SamParams:
    weights = folder / "model.safetensors"
    return SamParams(model=name, checkpoint=str(weights), sha256=sha256(weights), precision="float32")


def test_as_transformers_itself(saved: tuple[str, Path]) -> None:
    name, folder = saved
    sam = params_of(name, folder)
    segmenter = MODELS[name].load(resolve_weights(sam)[0], CPU, sam, None)
    images = [draw_scene(k).image[: 200 - 60 * k, : 256 - 30 * k] for k in range(2)]
    rng = np.random.default_rng(0)
    sizes = [image.shape[:2] for image in images]
    points = [[rng.integers(0, (w, h), (n, 2)) for n in (5, 2, 5)] for h, w in sizes]
    boxes = [np.array([10, 20, 60, 90]), np.array([0, 5, 100, 120])]
    prompts = [
        [*(Prompt(points=one) for one in several), Prompt(box=box)] for several, box in zip(points, boxes, strict=True)
    ]
    embeddings = segmenter.encode([segmenter.preprocess(image) for image in images])
    assert all(one.dtype == torch.float16 for one in embeddings)
    found = segmenter.decode(embeddings, sizes, prompts)

    model, processor = segmenter.model, SMALL[name][1](image_processor=segmenter.processor)
    processor.target_size = segmenter.side
    wrong, all_pixels, seen = 0, 0, []
    for image, size, several, answers in zip(images, sizes, prompts, found, strict=True):
        for prompt, answer in zip(several, answers, strict=True):
            given = (
                {"input_points": [[prompt.points.tolist()]], "input_labels": [[[1] * len(prompt.points)]]}
                if prompt.points is not None
                else {"input_boxes": [[prompt.box.tolist()]]}
            )
            inputs = processor(images=image, return_tensors="pt", **given)
            with torch.inference_mode():
                out = model(
                    **{key: value for key, value in inputs.items() if key in ("pixel_values", *given)},
                    multimask_output=True,
                )
            resized = [inputs["reshaped_input_sizes"]] if "reshaped_input_sizes" in inputs else []
            (masks,) = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], *resized)
            assert np.allclose(out.iou_scores.flatten().numpy(), answer.iou, atol=0.02)  # embeddings are float16
            for mask, counts in zip(masks.flatten(0, 1).numpy(), answer.counts, strict=True):
                assert counts.sum() == size[0] * size[1]
                own = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T
                assert mask_to_rle(own) == counts_to_rle(counts, size)
                wrong, all_pixels = wrong + (own != mask).sum(), all_pixels + mask.size
                seen.append(mask)
    telling = {mask.tobytes() for mask in seen if 0.02 < mask.mean() < 0.98}  # not empty or all, and a prompt's own
    assert len(telling) > len(seen) / 2
    assert wrong <= 2e-3 * all_pixels


def test_neither_neighbors_nor_order_matter(saved: tuple[str, Path]) -> None:
    name, folder = saved
    sam = params_of(name, folder)
    segmenter = MODELS[name].load(resolve_weights(sam)[0], CPU, sam, None)
    (embedding,) = segmenter.encode([segmenter.preprocess(draw_scene(3).image)])
    size = draw_scene(3).image.shape[:2]
    mask = np.zeros(size, bool)
    mask[30:90, 40:200] = True
    prompts = [
        Prompt(points=np.array([[40, 50], [60, 70]])),
        Prompt(mask=mask_to_rle(mask)),
        Prompt(points=np.array([[9, 9]])),
    ]
    (together,) = segmenter.decode([embedding], [size], [prompts])
    alone = [segmenter.decode([embedding], [size], [[prompt]])[0][0] for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        assert [counts.tolist() for counts in one.counts] == [counts.tolist() for counts in other.counts]
    (elsewhere,) = segmenter.decode([embedding], [size], [[Prompt(mask=mask_to_rle(~mask))]])
    assert [counts.tolist() for counts in elsewhere[0].counts] != [counts.tolist() for counts in together[1].counts]
    assert segmenter.decode([embedding], [size], [[]]) == [[]]


def test_an_embedding_takes_as_much_as_is_said() -> None:
    """Of the published sizes, whose shapes are told by the configs that transformers has for them."""
    sam2, sam3, hq = Sam2Config().vision_config, Sam3TrackerConfig().vision_config, SamHQConfig().vision_config
    for name, vision in (("sam2", sam2), ("sam3_tracker", sam3)):
        channels = (vision.fpn_hidden_size // 8, vision.fpn_hidden_size // 4, vision.fpn_hidden_size)
        values = sum(c * h * w for c, (h, w) in zip(channels, vision.backbone_feature_sizes, strict=True))
        assert MODELS[name].embedding_bytes == 2 * values
    grid = hq.image_size // hq.patch_size
    assert MODELS["sam_hq_b"].embedding_bytes == 2 * grid**2 * (hq.output_channels + hq.hidden_size)


def test_weights_that_are_not_there_are_told(saved: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = saved
    with pytest.raises(SesamError, match=r"Set sam\.checkpoint to the model\.safetensors"):
        resolve_weights(SamParams(model=name, checkpoint=None, sha256=None, precision="float32"))
    sam = params_of(name, folder)
    weights = tmp_path / "model.safetensors"
    for content in (b"", (folder / "model.safetensors").read_bytes()[:5000]):
        weights.write_bytes(content)
        for config in (None, "{", "{}", (folder / "config.json").read_text()):
            if config is not None:
                (tmp_path / "config.json").write_text(config)
            with pytest.raises(SesamError, match=r"does not hold .*Check sam\.checkpoint"):
                MODELS[name].load(weights, CPU, sam, None)


def test_weights_of_another_family_are_refused(saved: tuple[str, Path]) -> None:
    name, folder = saved
    other = next(one for one in SMALL if one != name)
    with pytest.raises(SesamError, match="does not hold"):
        MODELS[other].load(folder / "model.safetensors", CPU, params_of(name, folder), None)


def test_without_the_library_it_is_told(saved: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder = saved
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SesamError, match=r"pip install -c constraints\.txt -e '\.\[transformers\]'"):
        MODELS[name].load(folder / "model.safetensors", CPU, params_of(name, folder), None)


def test_every_family_has_a_model() -> None:
    assert {name.rsplit("_", 1)[0] if name.startswith("sam_hq") else name for name in MODELS} >= FAMILIES.keys()
