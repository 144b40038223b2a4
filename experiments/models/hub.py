"""Small networks of KerasHub, with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

LENGTH, WORDS = 8, 200
_TEXT = {"vocabulary_size": WORDS, "num_layers": 2, "hidden_dim": 16}


def texts(**more: Any) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(1, WORDS, (4, LENGTH))
    ones = np.ones((4, LENGTH), "int32")
    return {"token_ids": ids.astype("int32"), "padding_mask": ones, **more}


def _images() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.normal(size=(4, 16, 16, 3)).astype("float32")


def bert(units: int = 32) -> tuple[keras.Model, Any]:
    from keras_hub.models import BertBackbone

    backbone = BertBackbone(
        num_heads=2,
        intermediate_dim=units,
        max_sequence_length=LENGTH,
        **_TEXT,
    )
    return backbone, texts(segment_ids=np.zeros((4, LENGTH), "int32"))


def gpt2(units: int = 32) -> tuple[keras.Model, Any]:
    from keras_hub.models import GPT2Backbone

    backbone = GPT2Backbone(
        num_heads=2,
        intermediate_dim=units,
        max_sequence_length=LENGTH,
        **_TEXT,
    )
    return backbone, texts()


def gemma(units: int = 32) -> tuple[keras.Model, Any]:
    from keras_hub.models import GemmaBackbone

    backbone = GemmaBackbone(
        num_query_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_dim=units,
        **_TEXT,
    )
    return backbone, texts()


def llama(units: int = 32) -> tuple[keras.Model, Any]:
    from keras_hub.models import LlamaBackbone

    backbone = LlamaBackbone(
        num_query_heads=4,
        num_key_value_heads=2,
        intermediate_dim=units,
        **_TEXT,
    )
    return backbone, texts()


def t5(units: int = 32) -> tuple[keras.Model, Any]:
    from keras_hub.models import T5Backbone

    found = texts()
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in found.items()
    }
    return T5Backbone(num_heads=2, intermediate_dim=units, **_TEXT), sides


def vit(units: int = 32) -> tuple[keras.Model, Any]:
    from keras_hub.models import ViTBackbone

    backbone = ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=units,
    )
    return backbone, _images()


def resnet() -> tuple[keras.Model, Any]:
    from keras_hub.models import ResNetBackbone

    backbone = ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    return backbone, _images()


def mobilenet() -> tuple[keras.Model, Any]:
    from keras_hub.models import MobileNetBackbone

    backbone = MobileNetBackbone(
        stackwise_expansion=[[16, 24], [24]],
        stackwise_num_blocks=[2, 1],
        stackwise_num_filters=[[8, 8], [16]],
        stackwise_kernel_size=[[3, 3], [3]],
        stackwise_num_strides=[[2, 1], [2]],
        stackwise_se_ratio=[[None, None], [0.25]],
        stackwise_activation=[["relu6", "relu6"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [1]],
        output_num_filters=24,
        input_num_filters=8,
        input_activation="hard_swish",
        image_shape=(16, 16, 3),
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=None,
        last_layer_filter=24,
    )
    return backbone, _images()


def text_classifier(units: int = 32) -> tuple[keras.Model, Any]:
    from keras_hub.models import BertTextClassifier

    backbone, inputs = bert(units)
    return BertTextClassifier(backbone, 2, None), inputs


def image_classifier() -> tuple[keras.Model, Any]:
    from keras_hub.models import ResNetImageClassifier

    backbone, inputs = resnet()
    return ResNetImageClassifier(backbone, 3, None), inputs


def causal_lm(units: int = 32) -> tuple[keras.Model, Any]:
    from keras_hub.models import GPT2CausalLM

    backbone, inputs = gpt2(units)
    return GPT2CausalLM(backbone, None), inputs


BUILDERS: dict[str, Callable[..., tuple[keras.Model, Any]]] = {
    "BertBackbone": bert,
    "GPT2Backbone": gpt2,
    "GemmaBackbone": gemma,
    "LlamaBackbone": llama,
    "T5Backbone": t5,
    "ViTBackbone": vit,
    "ResNetBackbone": resnet,
    "MobileNetBackbone": mobilenet,
    "BertTextClassifier": text_classifier,
    "ResNetImageClassifier": image_classifier,
    "GPT2CausalLM": causal_lm,
}
# They have channels in place of hidden units.
IMAGES = ("ResNetBackbone", "MobileNetBackbone", "ResNetImageClassifier")
