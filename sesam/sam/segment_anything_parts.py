"""What is used of segment_anything, imported without torchvision, whose import takes longer than all the rest."""

from sesam.late_imports import late_imports

with late_imports(["torchvision.transforms.functional", "torchvision.ops.boxes"]):
    from segment_anything import sam_model_registry
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    from segment_anything.modeling.common import LayerNorm2d
    from segment_anything.modeling.image_encoder import Attention as EncoderAttention
    from segment_anything.modeling.image_encoder import Block, ImageEncoderViT
    from segment_anything.utils.transforms import ResizeLongestSide

__all__ = [
    "Block",
    "EncoderAttention",
    "ImageEncoderViT",
    "LayerNorm2d",
    "MaskDecoder",
    "PromptEncoder",
    "ResizeLongestSide",
    "Sam",
    "TwoWayTransformer",
    "sam_model_registry",
]
