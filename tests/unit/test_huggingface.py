"""SAM 2.1, HQ-SAM and SAM 3's tracker, small and random, against transformers with the same prompts."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch._dynamo.testing import CompileCounter

from sesam.artifacts.atomic_io import sha256
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.geometry.rle import counts_to_rle, mask_to_rle, rle_to_mask
from sesam.params import Runtime, SamParams
from sesam.sam import batched_sam, huggingface
from sesam.sam.batched_sam import ImagePrompt
from sesam.sam.checkpoints import resolve_weights
from sesam.sam.huggingface import HuggingFaceSam
from sesam.sam.registry import MODELS
from sesam.sam.sam_model import Prompt

CPU = torch.device("cpu")
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32, "vit_dim": 32}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 4}
VIT |= {"global_attn_indexes": [1]}
HIERA = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [128, 128]}
HIERA |= {"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "global_attention_blocks": [3]}
HIERA |= {"window_size_per_stage": [4, 4, 4, 4], "num_attention_heads_per_stage": [1, 1, 2, 2]}
SAM2 = {"backbone_config": HIERA, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32}
SAM2 |= {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
HQ = {**VIT, "output_channels": 32, "image_size": 128, "patch_size": 16, "num_pos_feats": 16}
SAM3_VIT = {**VIT, "model_type": "sam3_vit_model", "intermediate_size": 32, "patch_size": 14}
SAM3_VIT |= {"image_size": 112, "pretrain_image_size": 112}
SAM3 = {"model_type": "sam3_vision_model", "backbone_config": SAM3_VIT, "fpn_hidden_size": 32}
SAM3 |= {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
# the start of the classes' names in transformers, the encoder's config, and of the prompts'
SMALL = {
    "sam2": ("Sam2", SAM2, {"image_size": 128}),
    "sam_hq_b": ("SamHQ", HQ, {"image_size": 128, "patch_size": 16}),
    "sam3_tracker": ("Sam3Tracker", SAM3, {"image_size": 112, "patch_size": 14}),
}


def small_model(name: str) -> torch.nn.Module:
    """With weights that make masks of many shapes."""
    torch.manual_seed(0)
    classes, vision, prompts = SMALL[name]
    configs = {"prompt_encoder_config": {"hidden_size": 32, **prompts}, "mask_decoder_config": DECODER}
    config = getattr(transformers, f"{classes}Config")(vision_config=vision, **configs)
    model = getattr(transformers, f"{classes}Model")(config).eval()
    for value in model.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.3)
    return model


def mended(model: torch.nn.Module) -> torch.nn.Module:
    """HQ-SAM's masks are made of what the decoder's transformer returns; transformers takes what it was given."""
    if hasattr(decoder := model.mask_decoder, "hq_token"):
        returned = []
        decoder.transformer.register_forward_hook(lambda _module, _inputs, output: returned.append(output[1]))
        decoder.upscale_conv1.register_forward_pre_hook(
            lambda _module, inputs: returned.pop().flatten(0, 1).mT.reshape(inputs[0].shape)
        )
    return model


@pytest.fixture(scope="module", params=SMALL)
def sam(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SamParams:
    """Of a small model in a folder as published."""
    weights = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    small_model(request.param).save_pretrained(weights.parent)
    return SamParams(model=request.param, checkpoint=str(weights), sha256=sha256(weights), dtype="float32")


@pytest.fixture
def sam_model(sam: SamParams) -> HuggingFaceSam:
    return MODELS[sam.model].load(resolve_weights(sam).path, CPU, sam, None)


def test_masks_equal_those_of_transformers(sam: SamParams, sam_model: HuggingFaceSam) -> None:
    images = [draw_scene(k).image[: 200 - 60 * k, : 256 - 30 * k] for k in range(2)]
    rng = np.random.default_rng(0)
    sizes = [image.shape[:2] for image in images]
    points = [[Prompt(points=rng.integers(0, (w, h), (n, 2))) for n in (5, 2, 5)] for h, w in sizes]
    boxes = [np.array([10, 20, 60, 90]), np.array([0, 5, 100, 120])]
    prompts = [[*of_image, Prompt(box=box)] for of_image, box in zip(points, boxes, strict=True)]
    embeddings = sam_model.encode([sam_model.preprocess(image) for image in images])
    assert all(embedding.dtype == torch.float16 for embedding in embeddings)
    decoded = sam_model.decode(embeddings, sizes, prompts)

    model, classes = mended(small_model(sam.model)), SMALL[sam.model][0]
    processor = getattr(transformers, f"{classes}Processor")(image_processor=sam_model.processor)
    processor.target_size = sam_model.side
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
        assert np.allclose(
            out.iou_scores.flatten().numpy(), candidates.predicted_iou, atol=0.02
        )  # embeddings are float16
        for expected, counts in zip(masks.flatten(0, 1).numpy(), candidates.counts, strict=True):
            mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(sizes[k][::-1]).T
            assert mask_to_rle(mask) == counts_to_rle(counts, sizes[k])
            num_different += (mask != expected).sum()
            all_masks.append(expected)
    informative = {mask.tobytes() for mask in all_masks if 0.02 < mask.mean() < 0.98}
    assert len(informative) > len(all_masks) / 2  # neither empty nor full, and different for each prompt
    assert num_different <= 2e-3 * sum(mask.size for mask in all_masks)


def test_logits_equal_those_of_transformers(sam: SamParams, sam_model: HuggingFaceSam) -> None:
    """For prompts of two images of different sizes in one call, on embeddings that are not rounded."""
    images = [draw_scene(k).image[: 200 - 60 * k, : 256 - 30 * k] for k in range(2)]
    pixels = torch.stack([sam_model.preprocess(image) for image in images])
    model = mended(small_model(sam.model))
    rng, owners = np.random.default_rng(0), [1, 0, 0, 1]
    boxes = {k: np.array([10, 5, 60 + k, 90]) for k in range(4)}
    masks = {k: mask_to_rle(rng.random(images[owner].shape[:2]) > 0.5) for k, owner in enumerate(owners)}
    points = {k: rng.integers(0, 100, (3, 2)) for k in range(4)}
    with torch.inference_mode():
        maps = sam_model.to_maps(sam_model.encode_inputs(pixels))
        for given in ({"points": points}, {"box": boxes}, {"points": points, "box": boxes}, {"mask": masks}):
            prompts = [
                ImagePrompt(owner, images[owner].shape[:2], Prompt(**{name: x[k] for name, x in given.items()}))
                for k, owner in enumerate(owners)
            ]
            logits, quality = sam_model.logits(maps, prompts)
            for k, prompt in enumerate(prompts):
                # by the model's own front door: in pixels of its input, one prompt of one image
                scale = np.array(sam_model.resized(prompt.size)[::-1]) / prompt.size[::-1]
                inside = sam_model._downsample(rle_to_mask(masks[k], prompt.size))
                known = {
                    "points": ("input_points", torch.tensor(points[k] * scale)[None, None]),
                    "box": ("input_boxes", torch.tensor(boxes[k] * np.tile(scale, 2))[None, None]),
                    "mask": ("input_masks", torch.where(inside, 8.0, -8.0)[None, None]),
                }
                arguments = {known[name][0]: known[name][1].float() for name in given}
                out = model(pixels[prompt.image][None], **arguments, multimask_output=True)
                expected = out.pred_masks[0, 0, :, : logits.shape[2], : logits.shape[3]]
                assert torch.linalg.norm(logits[k] - expected) <= 1e-5 * torch.linalg.norm(expected)
                torch.testing.assert_close(quality[k], out.iou_scores[0, 0], rtol=1e-5, atol=1e-5)


def test_compiled_encoders_give_the_same_embeddings(sam: SamParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; here without the compiler behind."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    for module in (huggingface, batched_sam):
        monkeypatch.setattr(module, "has_fused_attention", lambda dtype, device: True)
    images = [draw_scene(k).image for k in range(2)]

    def encode(runtime: Runtime | None) -> torch.Tensor:
        sam_model = MODELS[sam.model].load(resolve_weights(sam).path, CPU, sam, runtime)
        return torch.stack(sam_model.encode([sam_model.preprocess(image) for image in images])).float()

    plain = encode(None)
    assert counter.frame_count == 0
    torch.testing.assert_close(encode(Runtime(compile=True)), plain, rtol=1e-2, atol=1e-3)
    assert counter.frame_count > 0


def test_prompts_are_independent_of_each_other(sam_model: HuggingFaceSam) -> None:
    image = draw_scene(3).image
    size = image.shape[:2]
    (embedding,) = sam_model.encode([sam_model.preprocess(image)])

    def decode(*prompts: Prompt) -> list[list[list[int]]]:
        (decoded,) = sam_model.decode([embedding], [size], [prompts])
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
    grid, channels = hq.image_size // hq.patch_size, hq.output_channels
    for name in ("sam_hq_b", "sam_hq_l", "sam_hq_h"):
        assert MODELS[name].embedding_bytes == 2 * (channels * grid**2 + channels // 8 * (4 * grid) ** 2)


def test_missing_and_damaged_weights_are_reported(sam: SamParams, tmp_path: Path) -> None:
    with pytest.raises(SesamError, match=r"Set sam\.checkpoint to the model\.safetensors"):
        resolve_weights(SamParams(model=sam.model))
    published, weights = Path(sam.checkpoint), tmp_path / "model.safetensors"
    for content in (b"", published.read_bytes()[:5000]):
        weights.write_bytes(content)
        for config in (None, "{", "{}", published.with_name("config.json").read_text()):
            if config is not None:
                (tmp_path / "config.json").write_text(config)
            with pytest.raises(SesamError, match=r"does not hold .*Check sam\.checkpoint"):
                MODELS[sam.model].load(weights, CPU, sam, None)
    other = next(model for model in SMALL if model != sam.model)
    with pytest.raises(SesamError, match="does not hold"):
        MODELS[other].load(published, CPU, sam.model_copy(update={"model": other}), None)


def test_missing_transformers_is_reported(sam: SamParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SesamError, match=r"pip install -c constraints\.txt -e '\.\[transformers\]'"):
        MODELS[sam.model].load(Path(sam.checkpoint), CPU, sam, None)
