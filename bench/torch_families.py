"""Families of Hugging Face's `transformers`, built from tiny configurations with random weights: nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TEXT = ("input_ids:int64[batch,length]", "attention_mask:int64[batch,length]")
PICTURE = ("pixel_values:float32[batch,3,32,32]",)
WAVE = ("input_values:float32[batch,samples]",)
_BERT: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 300,
}  # fmt: skip
_ROBERTA = {**_BERT, "pad_token_id": 1}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
_VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_SPEECH: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}  # fmt: skip

# name: (configuration class, its values, model class, inputs)
FAMILIES: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "bert": ("BertConfig", _BERT, "BertModel", (*TEXT, "token_type_ids:int64[batch,length]")),
    "bert_classifier": ("BertConfig", _BERT, "BertForSequenceClassification", TEXT),
    "distilbert": (
        "DistilBertConfig", {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
        "DistilBertModel", TEXT,
    ),
    "roberta": ("RobertaConfig", _ROBERTA, "RobertaModel", TEXT),
    "xlm_roberta": ("XLMRobertaConfig", _ROBERTA, "XLMRobertaForTokenClassification", TEXT),
    "albert": ("AlbertConfig", {**_BERT, "embedding_size": 16}, "AlbertModel", TEXT),
    "electra": ("ElectraConfig", {**_BERT, "embedding_size": 16}, "ElectraModel", TEXT),
    "mpnet": ("MPNetConfig", _BERT, "MPNetModel", TEXT),
    "deberta_v2": (
        "DebertaV2Config",
        {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
        "DebertaV2Model", TEXT,
    ),
    "modernbert": (
        "ModernBertConfig", {**_BERT, "global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0,
                             "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        "ModernBertModel", TEXT,
    ),
    "gpt2": (
        "GPT2Config", {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 300,
                       "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}, "GPT2LMHeadModel", TEXT,
    ),
    "gpt_neox": ("GPTNeoXConfig", {**_BERT, "use_cache": False}, "GPTNeoXForCausalLM", TEXT),
    "opt": (
        "OPTConfig", {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 300, "use_cache": False},
        "OPTForCausalLM", TEXT,
    ),
    "llama": ("LlamaConfig", _LLAMA, "LlamaForCausalLM", TEXT),
    "qwen2": ("Qwen2Config", _LLAMA, "Qwen2ForCausalLM", TEXT),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 8}, "Qwen3ForCausalLM", TEXT),
    "gemma": ("GemmaConfig", {**_LLAMA, "head_dim": 8}, "GemmaForCausalLM", TEXT),
    "phi": ("PhiConfig", _LLAMA, "PhiForCausalLM", TEXT),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": 8}, "MistralForCausalLM", TEXT),
    "falcon": (
        "FalconConfig", {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "use_cache": False}, "FalconForCausalLM", TEXT,
    ),
    "bloom": ("BloomConfig", {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
              "BloomForCausalLM", TEXT),
    "mamba": (
        "MambaConfig", {"vocab_size": 60, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1,
                        "use_cache": False}, "MambaModel", TEXT[:1],
    ),
    "t5_encoder": (
        "T5Config", {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                     "use_cache": False}, "T5EncoderModel", TEXT,
    ),
    "bart_encoder": (
        "BartConfig", {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
                       "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                       "decoder_ffn_dim": 48, "max_position_embeddings": 300}, "BartModel.encoder", TEXT,
    ),
    "whisper_encoder": (
        "WhisperConfig", {"vocab_size": 60, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
                          "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                          "decoder_ffn_dim": 48, "max_source_positions": 20, "pad_token_id": 0, "bos_token_id": 1,
                          "eos_token_id": 2, "decoder_start_token_id": 1}, "WhisperModel.encoder",
        ("input_features:float32[batch,8,40]",),
    ),
    "wav2vec2": ("Wav2Vec2Config", _SPEECH, "Wav2Vec2Model", WAVE),
    "hubert": ("HubertConfig", _SPEECH, "HubertModel", WAVE),
    "vit": ("ViTConfig", _VIT, "ViTModel", PICTURE),
    "deit": ("DeiTConfig", _VIT, "DeiTForImageClassification", PICTURE),
    "beit": ("BeitConfig", {**_VIT, "use_relative_position_bias": True}, "BeitModel", PICTURE),
    "dinov2": ("Dinov2Config", {**_VIT, "mlp_ratio": 2}, "Dinov2Model", PICTURE),
    "clip_vision": ("CLIPVisionConfig", _VIT, "CLIPVisionModel", PICTURE),
    "clip_text": ("CLIPTextConfig", {**_BERT, "eos_token_id": 2}, "CLIPTextModel", TEXT),
    "siglip_vision": ("SiglipVisionConfig", _VIT, "SiglipVisionModel", PICTURE),
    "swin": (
        "SwinConfig", {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4],
                       "window_size": 4}, "SwinModel", PICTURE,
    ),
    "convnext": ("ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2}, "ConvNextModel",
                 ("pixel_values:float32[batch,3,height,width]",)),
    "convnextv2": ("ConvNextV2Config", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, "ConvNextV2Model",
                   PICTURE),
    "segformer": (
        "SegformerConfig", {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16],
                            "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
                            "mlp_ratios": [2, 2], "decoder_hidden_size": 16},
        "SegformerForSemanticSegmentation", ("pixel_values:float32[batch,3,height,width]",),
    ),
    "mobilevit": (
        "MobileViTConfig", {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
                            "num_attention_heads": 2, "mlp_ratio": 2.0}, "MobileViTModel",
        ("pixel_values:float32[batch,3,64,64]",),
    ),
    "resnet": (
        "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "ResNetForImageClassification", ("pixel_values:float32[batch,3,height,width]",),
    ),
    "regnet": ("RegNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
               "RegNetModel", PICTURE),
    "efficientnet": (
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320, "image_size": 32},
        "EfficientNetModel", PICTURE,
    ),
    "mobilenet_v1": ("MobileNetV1Config", {"depth_multiplier": 0.25, "image_size": 32}, "MobileNetV1Model", PICTURE),
    "mobilenet_v2": ("MobileNetV2Config", {"depth_multiplier": 0.25, "image_size": 32}, "MobileNetV2Model", PICTURE),
    "poolformer": (
        "PoolFormerConfig", {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}, "PoolFormerModel", PICTURE,
    ),
    "yolos": ("YolosConfig", {**_VIT, "image_size": [32, 32], "num_detection_tokens": 5}, "YolosForObjectDetection",
              PICTURE),
    "dpt": (
        "DPTConfig", {**_VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
                      "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8,
                      "reassemble_factors": [4, 2, 1, 0.5]}, "DPTForDepthEstimation", PICTURE,
    ),
}  # fmt: skip


def build(name: str) -> Any:
    """The family's model in eval mode, its weights from seed 0; what starts as all zeros or ones is drawn too."""
    import torch
    import transformers  # type: ignore[import-not-found]

    transformers.logging.set_verbosity_error()
    kind, values, model, _ = FAMILIES[name]
    torch.manual_seed(0)
    owner, _, part = model.partition(".")
    whole = getattr(transformers, owner)(getattr(transformers, kind)(**values)).eval()
    with torch.no_grad():
        for weight in whole.parameters():
            if (weight == weight.flatten()[0]).all():
                weight.add_(torch.randn_like(weight), alpha=0.05)
    return getattr(whole, part) if part else whole


def factory(name: str) -> Callable[[], Any]:
    """`build` of one family, without arguments."""
    return lambda: build(name)
