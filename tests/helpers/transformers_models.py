"""Tiny audio tokenizers with random weights, made and saved by transformers' own code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def _hubert() -> dict[str, Any]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return sizes | {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}


def _acoustic(*ratios: int) -> dict[str, Any]:
    return {
        "encoder_hidden_size": 8,
        "decoder_hidden_size": 64,
        "hidden_size": 16,
        "downsampling_ratios": list(ratios),
        "upsampling_ratios": list(ratios),
    }


def _speech_tokenizer() -> dict[str, Any]:
    """Of Xcodec2 and NeuCodec: 16 kHz in, finite scalar quantization."""
    semantic = {
        "model_type": "wav2vec2-bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "feature_projection_input_dim": 160,
        "output_hidden_size": 16,
        "conv_depthwise_kernel_size": 3,
        "max_source_positions": 100,
    }
    return {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "encoder_hidden_size": 4,
        "semantic_model_config": semantic,
        "quantization_dim": 48,
        "quantization_levels": [4, 4, 4],
    }


def _wavtokenizer(transformers: Any) -> tuple[Any, Any]:
    config = transformers.WavTokenizerConfig(
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=64,
        decoder_hidden_size=32,
        decoder_intermediate_size=32,
        decoder_num_layers=1,
        decoder_attention_num_groups=4,
        num_lstm_layers=1,
        upsampling_ratios=[5, 4, 4, 2],
    )
    return transformers.WavTokenizerModel(config), transformers.WavTokenizerFeatureExtractor(hop_length=160)


def _xcodec(transformers: Any) -> tuple[Any, Any]:
    config = transformers.XcodecConfig(
        acoustic_model_config=transformers.DacConfig(**_acoustic(8, 5, 4, 2)),
        semantic_model_config=transformers.HubertConfig(**_hubert()),
        codebook_size=32,
        codebook_dim=32,
        target_bandwidths=[0.5, 1.0],
    )
    return transformers.XcodecModel(config), transformers.DacFeatureExtractor(sampling_rate=16000, hop_length=320)


def _higgs(transformers: Any) -> tuple[Any, Any]:
    config = transformers.HiggsAudioV2TokenizerConfig(
        acoustic_model_config=_acoustic(8, 5, 4, 2, 3),
        semantic_model_config=_hubert(),
        codebook_size=32,
        codebook_dim=8,
        target_bandwidths=[0.25, 0.5],
    )
    extractor = transformers.DacFeatureExtractor(sampling_rate=24000, hop_length=960)
    return transformers.HiggsAudioV2TokenizerModel(config), extractor


def _xcodec2(transformers: Any) -> tuple[Any, Any]:
    config = transformers.Xcodec2Config(**_speech_tokenizer())
    return transformers.Xcodec2Model(config), transformers.Xcodec2FeatureExtractor()


def _neucodec(transformers: Any) -> tuple[Any, Any]:
    config = transformers.NeuCodecConfig(**_speech_tokenizer())
    return transformers.NeuCodecModel(config), transformers.NeuCodecFeatureExtractor()


MODELS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "wavtokenizer": _wavtokenizer,
    "xcodec": _xcodec,
    "higgs_audio_v2_tokenizer": _higgs,
    "xcodec2": _xcodec2,
    "neucodec": _neucodec,
}


def tokenizer(transformers: Any, kind: str, seed: int = 0) -> tuple[Any, Any]:
    """A model of a type, with weights that give diverse codes, and its feature extractor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, extractor = MODELS[kind](transformers)
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and "original0" not in name:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        for name, buffer in net.named_buffers():
            if name.endswith("codebook.embed"):
                buffer.normal_(0, 0.5)
                if kind == "wavtokenizer":  # its latents hardly differ: use some as entries
                    with torch.no_grad():
                        latents = net.encoder_model.encoder(torch.randn(1, 1, 160 * len(buffer)).cumsum(2) / 50)
                    buffer.copy_(latents[0].T)
    return net.eval(), extractor


def write_tokenizer(transformers: Any, kind: str, folder: Path) -> Path:
    """The folder of such a model."""
    net, extractor = tokenizer(transformers, kind)
    net.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
