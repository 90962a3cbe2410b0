"""The networks: each with random weights, small inputs and labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BATCH = 4
_CLASSES = 10
_LENGTH = 12
_VOCABULARY = 64


@dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
        package: Where it is from.
        name: What it is called there.
        make: Gives the module, which maps its inputs to logits [N, C] or [N, C, ...].
        inputs: Gives inputs of a batch of some size.
    """

    package: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[torch.Tensor, ...]]


class Logits(nn.Module):
    """A network of which one output counts, with the classes in axis 1."""

    def __init__(self, network: nn.Module, pick: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.network = network
        self.pick = pick

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The output that counts."""
        return self.pick(self.network(*inputs))


class Called(nn.Module):
    """A network that is called with names."""

    def __init__(self, network: nn.Module, *names: str) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Its logits."""
        logits: torch.Tensor = self.network(**dict(zip(self.names, inputs, strict=True))).logits
        return logits if logits.dim() == 2 else logits.transpose(1, 2)


def networks() -> Iterator[Network]:
    """All of them."""
    yield from _torchvision()
    yield from _timm()
    yield from _transformers()


def without_dropout(module: nn.Module) -> nn.Module:
    """Draw nothing: what is drawn cannot be compared."""
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, float) and ("drop" in name or name == "p"):
                setattr(part, name, 0.0)
    return module


def _images(size: int, *, channels: int = 3) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda batch: (torch.randn(batch, channels, size, size),)


def _clips(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 3, 4, 32, 32),)


def _tokens(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(3, _VOCABULARY, (batch, _LENGTH)),)


def _torchvision() -> Iterator[Network]:
    from torchvision import models

    for name in (
        "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2",
        "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
        "swin_t", "swin_v2_t",
    ):  # fmt: skip
        extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}

        def make(name: str = name, extra: dict[str, Any] = extra) -> nn.Module:
            network: nn.Module = models.get_model(name, num_classes=_CLASSES, **extra)
            return network

        yield Network("torchvision", name, make, _images(64))

    yield Network(
        "torchvision",
        "vit_b_16, 2 layers",
        lambda: models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=_CLASSES),
        _images(32),
    )
    for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"):

        def segment(name: str = name) -> nn.Module:
            network = models.get_model(name, num_classes=_CLASSES, weights_backbone=None)
            return Logits(network, lambda outputs: outputs["out"])

        yield Network("torchvision", name, segment, _images(64))
    for name in ("r3d_18", "mc3_18"):

        def video(name: str = name) -> nn.Module:
            network: nn.Module = models.get_model(name, num_classes=_CLASSES)
            return network

        yield Network("torchvision", name, video, _clips)


def _timm() -> Iterator[Network]:
    import timm

    fixed: dict[str, dict[str, Any]] = {  # the size of the image is part of the network
        "deit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
        "cait_xxs24_224": {"img_size": 32, "patch_size": 8, "depth": 2},
        "coat_lite_tiny": {"img_size": 64},
        "mixer_s32_224": {"img_size": 64},
        "gmlp_ti16_224": {"img_size": 64},
        "resmlp_12_224": {"img_size": 64},
        "xcit_nano_12_p16_224": {"img_size": 64, "depth": 2},
        "swinv2_cr_tiny_224": {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)},
        "pit_ti_224": {"img_size": 64},
        "levit_128s": {"img_size": 64},
    }
    for name in (
        "convnext_atto", "nf_resnet26", "eca_nfnet_l0", "resnetv2_50x1_bit", "mobilevit_xxs",
        "poolformer_s12", "edgenext_xx_small", "ghostnet_050", "repvgg_a0", "lcnet_050",
        "tinynet_e", "ese_vovnet19b_slim_dw", "hrnet_w18_small", "dla46_c", "res2net50_14w_8s",
        "skresnet18", "fastvit_t8", "inception_next_atto", "mobilenetv4_conv_small_035",
        "hgnetv2_b0", "pvt_v2_b0", "starnet_s1", "rexnet_100", "cspresnet50", "mambaout_femto",
        "efficientvit_b0", "tiny_vit_5m_224", *fixed,
    ):  # fmt: skip

        def make(name: str = name) -> nn.Module:
            network: nn.Module = timm.create_model(
                name, num_classes=_CLASSES, **fixed.get(name, {})
            )
            return network

        size = fixed.get(name, {}).get("img_size", 64)
        yield Network("timm", name, make, _images(size))


def _transformers() -> Iterator[Network]:
    import transformers as hf

    small = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    decoder = {**small, "num_key_value_heads": 2, "use_cache": False}
    models: list[tuple[str, str, dict[str, Any]]] = [
        ("Bert", "SequenceClassification", small),
        ("Bert", "MaskedLM", small),
        ("Roberta", "SequenceClassification", small),
        ("Electra", "SequenceClassification", {**small, "embedding_size": 16}),
        ("Albert", "SequenceClassification", {**small, "embedding_size": 16}),
        ("DistilBert", "SequenceClassification",
         {"vocab_size": _VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
        ("MobileBert", "SequenceClassification",
         {**small, "intra_bottleneck_size": 16, "embedding_size": 16}),
        ("DebertaV2", "SequenceClassification",
         {**small, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
        ("GPT2", "LMHeadModel",
         {"vocab_size": _VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32,
          "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}),
        ("GPTNeoX", "CausalLM", {**small, "use_cache": False}),
        ("OPT", "CausalLM",
         {**small, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False}),
        ("Bloom", "CausalLM",
         {"vocab_size": _VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4,
          "use_cache": False}),
        ("Llama", "CausalLM", decoder),
        ("Mistral", "CausalLM", decoder),
        ("Qwen2", "CausalLM", decoder),
        ("Qwen3", "CausalLM", {**decoder, "head_dim": 8}),
        ("Gemma", "CausalLM", {**decoder, "head_dim": 8}),
        ("Phi3", "CausalLM", decoder),
        ("Mamba", "CausalLM",
         {"vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
          "use_cache": False, "use_mambapy": False}),
    ]  # fmt: skip
    for name, task, settings in models:

        def make(name: str = name, task: str = task, settings: Any = settings) -> nn.Module:
            config = getattr(hf, f"{name}Config")(
                **settings, **({"num_labels": _CLASSES} if "Sequence" in task else {})
            )
            for key, value in vars(config).items():
                if isinstance(value, float) and "drop" in key:
                    setattr(config, key, 0.0)
            kind = task if task.endswith("HeadModel") else f"For{task}"
            return Called(getattr(hf, name + kind)(config), "input_ids")

        yield Network("transformers", f"{name}, {task}", make, _tokens)
    yield Network(
        "transformers",
        "T5, ConditionalGeneration",
        lambda: Called(
            hf.T5ForConditionalGeneration(
                hf.T5Config(
                    vocab_size=_VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                    dropout_rate=0.0, use_cache=False,
                )
            ),
            "input_ids",
            "decoder_input_ids",
        ),
        lambda batch: (*_tokens(batch), *_tokens(batch)),
    )  # fmt: skip
    yield Network(
        "transformers",
        "ViT, ImageClassification",
        lambda: Called(
            hf.ViTForImageClassification(
                hf.ViTConfig(
                    hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=64, image_size=32, patch_size=8, num_labels=_CLASSES,
                )
            ),
            "pixel_values",
        ),
        _images(32),
    )  # fmt: skip
    yield Network(
        "transformers",
        "Wav2Vec2, SequenceClassification",
        lambda: Called(
            hf.Wav2Vec2ForSequenceClassification(
                hf.Wav2Vec2Config(
                    hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=64, conv_dim=(16, 16), conv_stride=(5, 4),
                    conv_kernel=(10, 8), num_conv_pos_embeddings=8,
                    num_conv_pos_embedding_groups=4, classifier_proj_size=16,
                    num_labels=_CLASSES, apply_spec_augment=False, hidden_dropout=0.0,
                    attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
                    final_dropout=0.0, layerdrop=0.0, mask_time_prob=0.0,
                )
            ),
            "input_values",
        ),
        lambda batch: (torch.randn(batch, 400),),
    )  # fmt: skip
