"""Small checkpoints of the true architectures, with their real processors, for tests of the judges' code.

Their weights are random, and the normalisation layers are moved a little as training would: the judges refuse
untrained checkpoints. Their scores mean nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf

CLIP_TOKENIZER = Path(__file__).resolve().parents[3] / "lib_decouple" / "embedded" / "tokenizer"
SIDE = 32
_KNOWN = (
    "a an is are there cat dog bear bird frog car ball glasses elephant apple photo of and the yes no does this "
    "figure show please answer or question describe image in one sentence short caption with ? . : \" , '"
)
WORDS = _KNOWN.split()
_CASED = "Yes Does Please USER ASSISTANT Question Answer Describe"


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        **more,
    }


def _text(**more: Any) -> dict[str, Any]:
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, **more}


def bert_tokenizer(folder: Path, *more: str) -> Any:
    """WordPiece over a few words and ``more``."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *WORDS, *more]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(tokens), encoding="utf-8")
    return tf.BertTokenizerFast(str(vocabulary), model_max_length=64)


def word_tokenizer(special: tuple[str, ...] = (), end: bool = True) -> Any:
    """Whole words with the case kept, as language models have them: "Yes" is not "yes". ``end``: ``</s>`` is put."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", *WORDS, *_CASED.split()]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    found = tf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )
    if special:
        found.add_special_tokens({"additional_special_tokens": list(special)})
    return found


def moved(model: Any) -> Any:
    """As after training: no normalisation layer is as initialised."""
    for module in model.modules():
        if "Norm" in type(module).__name__:
            for parameter in module.parameters(recurse=False):
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def save(folder: Path, model: Any, processor: Any) -> Path:
    moved(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    tokenizer = tf.CLIPTokenizerFast.from_pretrained(CLIP_TOKENIZER)
    config = tf.CLIPConfig(
        text_config=_text(
            vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id
        ),
        vision_config=_vision(),
        projection_dim=16,
    )
    images = tf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    return save(folder, tf.CLIPModel(config), tf.CLIPProcessor(images, tokenizer))


def blip(folder: Path, kind: str) -> Path:
    """``kind``: a class of BLIP, such as ``BlipForQuestionAnswering``."""
    folder.mkdir(exist_ok=True)
    tokenizer = bert_tokenizer(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(f"[{name.upper()}]") for name in ("pad", "sep", "cls", "dec")}
    config = tf.BlipConfig(
        text_config=_text(
            vocab_size=len(tokenizer),
            encoder_hidden_size=32,
            bos_token_id=ids["dec"],
            pad_token_id=ids["pad"],
            eos_token_id=ids["sep"],
            sep_token_id=ids["sep"],
        ),
        vision_config=_vision(),
        projection_dim=16,
    )
    images = tf.BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    return save(folder, getattr(tf, kind)(config), tf.BlipProcessor(images, tokenizer))


def vilt(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer = bert_tokenizer(folder)
    labels = {0: "two", 1: "no", 2: "red", 3: "yes"}
    config = tf.ViltConfig(
        **_vision(),
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    images = tf.ViltImageProcessor(size={"shortest_edge": SIDE}, size_divisor=8)
    return save(folder, tf.ViltForQuestionAnswering(config), tf.ViltProcessor(images, tokenizer))


def blip2(folder: Path) -> Path:
    tokenizer = word_tokenizer(("<image>",))
    config = tf.Blip2Config(
        vision_config=_vision(),
        qformer_config=_text(encoder_hidden_size=32, vocab_size=len(tokenizer)),
        text_config={"model_type": "t5", **_t5(tokenizer)},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = tf.BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    return save(
        folder, tf.Blip2ForConditionalGeneration(config), tf.Blip2Processor(images, tokenizer, num_query_tokens=4)
    )


def instructblip(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer, reader = word_tokenizer(("<image>",)), bert_tokenizer(folder)
    config = tf.InstructBlipConfig(
        vision_config=_vision(),
        qformer_config=_text(encoder_hidden_size=32, vocab_size=len(reader)),
        text_config={"model_type": "t5", **_t5(tokenizer)},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = tf.BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = tf.InstructBlipProcessor(images, tokenizer, reader, num_query_tokens=4)
    return save(folder, tf.InstructBlipForConditionalGeneration(config), processor)


def _t5(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }


def llava(folder: Path) -> Path:
    tokenizer = word_tokenizer(("<image>",), end=False)
    config = tf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_vision()},
        text_config={"model_type": "llama", **_text(vocab_size=len(tokenizer), num_key_value_heads=2)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // 8) ** 2,
    )
    images = tf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    processor = tf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    return save(folder, tf.LlavaForConditionalGeneration(config), processor)


def owlv2(folder: Path) -> Path:
    tokenizer = tf.CLIPTokenizerFast.from_pretrained(CLIP_TOKENIZER, model_max_length=16)
    config = tf.Owlv2Config(
        text_config=_text(
            vocab_size=len(tokenizer),
            max_position_embeddings=16,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=0,
        ),
        vision_config=_vision(),
        projection_dim=32,
    )
    images = tf.Owlv2ImageProcessor(size={"height": SIDE, "width": SIDE})
    return save(folder, tf.Owlv2ForObjectDetection(config), tf.Owlv2Processor(images, tokenizer))


class QwenParts:
    """Qwen3-VL's processor but for videos, for which its own class needs torchvision."""

    chat_template = "one image, then the question"

    def __init__(self) -> None:
        special = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        self.tokenizer = word_tokenizer(special, end=False)
        self.images = tf.Qwen2VLImageProcessor(
            size={"shortest_edge": SIDE**2, "longest_edge": 4 * SIDE**2}, patch_size=8, merge_size=2
        )

    def apply_chat_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        (message,) = messages
        (question,) = (part["text"] for part in message["content"] if part["type"] == "text")
        return f"USER : <|vision_start|> <|image_pad|> <|vision_end|> {question} ASSISTANT :"

    def __call__(self, images: Any, text: str, return_tensors: str) -> dict[str, Any]:
        seen = self.images(images=images, return_tensors=return_tensors)
        pads = int(seen["image_grid_thw"].prod()) // 4
        read = self.tokenizer(
            text.replace("<|image_pad|>", " ".join(["<|image_pad|>"] * pads)), return_tensors=return_tensors
        )
        types = (read["input_ids"] == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        return {**read, **seen, "mm_token_type_ids": types}


def qwen3_vl(folder: Path) -> Path:
    """The model alone; :class:`QwenParts` prepares its inputs."""
    tokenizer = QwenParts().tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ids |= {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
    config = tf.Qwen3VLConfig(
        text_config=_text(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=16, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    moved(tf.Qwen3VLForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def git(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer = bert_tokenizer(folder)
    config = tf.GitConfig(
        **_text(vocab_size=len(tokenizer)),
        vision_config=_vision(),
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_image_with_embedding=None,
    )
    images = tf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    return save(folder, tf.GitForCausalLM(config), tf.GitProcessor(images, tokenizer))


def two_part(folder: Path) -> Path:
    """ViT and GPT-2, as ``nlpconnect/vit-gpt2-image-captioning``: no processor of its own, but its two parts."""
    tokenizer = word_tokenizer()
    text = tf.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        add_cross_attention=True,
        is_decoder=True,
    )
    vision = tf.ViTConfig(**_vision())
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id = config.pad_token_id = 0
    config.eos_token_id = 1
    images = tf.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    images.save_pretrained(folder)
    return save(folder, tf.VisionEncoderDecoderModel(config), tokenizer)
