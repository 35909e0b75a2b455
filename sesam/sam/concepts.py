"""SAM 3 prompted by concepts: a text, and perhaps boxes of what it means, give all instances of an image at once.

Carion et al. 2025, by transformers' Sam3Model, an optional extra. Of its weights' tracker, sam3_tracker, nothing is
used here.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sesam.errors import SesamError, limit_reached
from sesam.geometry.rle import mask_to_counts
from sesam.params import Runtime, SamParams
from sesam.sam.batched_sam import OomBatcher, explain_full_gpu, make_batchers, map_groups, to_float16
from sesam.sam.huggingface import compiled, load_pretrained, preprocess
from sesam.sam.sam_model import MaskPredictions, Prompt

PROMPTS_PER_CALL = {"cpu": 1, "cuda": 16}
SCORE = 0.5  # an instance must have more, and a pixel of its mask too: as the authors publish it
TOKENS = 32  # of a text, which is padded or cut to them


class Text(NamedTuple):
    """What the model reads of a concept's text: features (1, TOKENS, C), and which tokens are not padding."""

    features: Tensor
    mask: Tensor


class ConceptSam:
    """A `SamModel` of which a prompt's one mask is all instances of its concept.

    An embedding is the last map of the ViT. The neck, which makes maps five times as large of it, runs in `decode`.
    """

    takes_concepts = True  # and nothing else

    def __init__(
        self, model: Any, tokenizer: Any, device: torch.device, sam: SamParams, runtime: Runtime | None
    ) -> None:
        """sam.dtype is of the encoder's matrix products; the rest is float32."""
        from transformers import Sam3ImageProcessor

        self.model, self.tokenizer, self.device = model.to(device).eval(), tokenizer, device
        self.dtype = getattr(torch, sam.dtype)
        side = model.config.vision_config.backbone_config.image_size
        self.preprocess = partial(preprocess, processor=Sam3ImageProcessor(size={"height": side, "width": side}))
        self.embed = compiled(self.model.vision_encoder.backbone, self.dtype, device, runtime)
        self.image_batcher, _ = make_batchers(device, runtime)
        self.prompt_batcher = OomBatcher("prompts", PROMPTS_PER_CALL[device.type])
        self.read = cache(self._read)  # texts are names of classes, the same in every image

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        return self.image_batcher.map(self._encode, images)

    def _encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        pixels = self.image_batcher.full([image.to(self.device, non_blocking=True) for image in images])
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            tokens = self.embed(pixels).last_hidden_state
        rows, columns = (
            side // self.model.config.vision_config.backbone_config.patch_size for side in pixels.shape[2:]
        )
        return to_float16(tokens[: len(images)].unflatten(1, (rows, columns)).permute(0, 3, 1, 2))

    @torch.inference_mode()
    def decode(
        self, embeddings: Sequence[Tensor], sizes: Sequence[tuple[int, int]], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[MaskPredictions]]:
        decoded: list[list[MaskPredictions]] = []
        for embedding, size, of_image in zip(embeddings, sizes, prompts, strict=True):
            if not of_image:
                decoded.append([])
                continue
            with explain_full_gpu():
                maps, positions = self.model.vision_encoder.neck(embedding[None].to(self.device, torch.float32))
            decode = partial(self.prompt_batcher.map, partial(self._decode, maps, positions, size))
            layouts = [(0 if x.exemplars is None else len(x.exemplars),) for x in of_image]
            decoded.append(map_groups(decode, of_image, layouts))
        return decoded

    def _decode(
        self, maps: Sequence[Tensor], positions: Sequence[Tensor], size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> list[MaskPredictions]:
        """Of prompts with equally many exemplars, in an image with the neck's maps (1, C, h, w)."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        repeated = [[x.expand(len(prompts), -1, -1, -1) for x in of_levels] for of_levels in (maps, positions)]
        texts = [self.read(x.concept) for x in prompts]
        exemplars = [relative_boxes(x.exemplars, size) for x in prompts if x.exemplars is not None]
        found = self.model(
            vision_embeds=Sam3VisionEncoderOutput(
                fpn_hidden_states=tuple(repeated[0]), fpn_position_encoding=tuple(repeated[1])
            ),
            text_embeds=BaseModelOutputWithPooling(pooler_output=torch.cat([x.features for x in texts])),
            attention_mask=torch.cat([x.mask for x in texts]),
            input_boxes=torch.stack(exemplars).to(self.device) if exemplars else None,
        )
        scores = found.pred_logits.sigmoid() * found.presence_logits.sigmoid()
        return [unite(*instances, size) for instances in zip(scores, found.pred_masks, strict=True)]

    def _read(self, text: str) -> Text:
        tokens = self.tokenizer(
            [text], return_tensors="pt", padding="max_length", max_length=TOKENS, truncation=True
        ).to(self.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        return Text(self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output, mask)


def relative_boxes(boxes: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) left, top, right, bottom in an image of (height, width) as the model takes them.

    Center x, center y, width and height, relative to the image's, (n, 4) float32.
    """
    left_top, right_bottom = np.split(boxes / np.tile(size[::-1], 2), 2, axis=1)
    return torch.tensor(np.hstack([(left_top + right_bottom) / 2, right_bottom - left_top]), dtype=torch.float32)


def unite(scores: Tensor, logits: Tensor, size: tuple[int, int]) -> MaskPredictions:
    """The union of instances that score more than SCORE, with their mean score; without any, no pixel.

    scores: (Q,). logits: (Q, h, w). size: (height, width) of the image.
    """
    united, kept = torch.zeros(size, dtype=torch.bool, device=logits.device), scores > SCORE
    for mask in logits[kept]:  # one at a time: hundreds of full size fill a GPU
        united |= F.interpolate(mask.sigmoid()[None, None], size, mode="bilinear")[0, 0] > SCORE
    score = scores[kept].mean() if kept.any() else scores.max()
    return MaskPredictions([mask_to_counts(united.cpu().numpy())], score.cpu().numpy()[None])


def load_concept_sam(weights: Path, device: torch.device, sam: SamParams, runtime: Runtime | None) -> ConceptSam:
    """SAM 3 with its tokenizer from the folder of `weights`; SesamError if they are not there."""
    model = load_pretrained(weights, "Sam3Model", sam, lambda model: "")
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(weights.parent, local_files_only=True)
        if len(tokenizer) != model.config.text_config.vocab_size:
            raise ValueError("its tokens are not those of the model")
    except Exception as problem:  # of any kind, because the library parses the files
        if limit_reached(problem) is not None:
            raise
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        raise SesamError(
            f"{weights.parent} does not hold SAM 3's tokenizer ({reason}). Put its tokenizer.json, or vocab.json and "
            "merges.txt, beside model.safetensors, as published."
        ) from None
    return ConceptSam(model, tokenizer, device, sam, runtime)
