"""Visual question answering: the probability of "yes", by any of transformers' models for it.

Classifiers (ViLT) are read from their label; generators (BLIP) from the first answer token, which is
what VQAScore (Lin et al. 2024) does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Item, Missing, Options, load, load_processor
from .clip import with_article


class _Model:
    name = "vqa"

    def __init__(self, source: str, options: Options) -> None:
        from transformers import AutoConfig

        self.source, self._options = source, options
        self._processor = load_processor(source, self.name)
        self._blip = AutoConfig.from_pretrained(source).model_type == "blip"
        kind = "BlipForQuestionAnswering" if self._blip else "AutoModelForVisualQuestionAnswering"
        self._model = load(kind, source, options, self.name)
        self._yes, self._no = self._answers()

    def _answers(self) -> tuple[int, int]:
        """Places of "yes" and "no" in what the model gives."""
        if self._blip or not getattr(self._model.config, "label2id", None) or self._model.can_generate():
            tokenizer = self._processor.tokenizer
            found = [tokenizer.encode(word, add_special_tokens=False) for word in ("yes", "no")]
            if any(len(own) != 1 or own[0] == tokenizer.unk_token_id for own in found):
                raise Missing(f"{self.source}: its tokenizer has no single token for yes and no")
            return found[0][0], found[1][0]
        labels = {str(label).lower(): int(place) for label, place in self._model.config.label2id.items()}
        if not {"yes", "no"} <= set(labels):
            raise Missing(f"{self.source}: its labels have no yes and no")
        return labels["yes"], labels["no"]

    def _logits(self, images: Sequence[Any], questions: Sequence[str]) -> Any:
        """``[n, answers or tokens]`` of the answer's first step."""
        import torch

        ready = self._processor(
            images=list(images), text=list(questions), return_tensors="pt", padding=True, truncation=True
        )
        ready = {
            name: value.to(self._options.device, self._options.torch_dtype if value.is_floating_point() else None)
            for name, value in ready.items()
        }
        with torch.no_grad():
            if not self._blip:
                if self._model.can_generate():
                    done = self._model.generate(
                        **ready, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
                    )
                    return done.logits[0].float()
                return self._model(**ready).logits.float()
            # BLIP's forward pass wants the answer; its generate() shows no raw logits: encode, then one decoder step.
            model = self._model
            seen = model.vision_model(pixel_values=ready["pixel_values"])[0]
            mask = torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device)
            asked = model.text_encoder(
                input_ids=ready["input_ids"],
                attention_mask=ready["attention_mask"],
                encoder_hidden_states=seen,
                encoder_attention_mask=mask,
                return_dict=False,
            )[0]
            start = torch.full((len(asked), 1), model.decoder_start_token_id, device=seen.device)
            return (
                model.text_decoder(
                    input_ids=start,
                    encoder_hidden_states=asked,
                    encoder_attention_mask=ready["attention_mask"],
                    use_cache=False,
                )
                .logits[:, -1]
                .float()
            )

    def _probability(self, images: Sequence[Any], questions: Sequence[str], against_no: bool) -> list[float]:
        logits = self._logits(images, questions)
        if against_no:
            logits, yes = logits[:, [self._yes, self._no]], 0
        else:
            yes = self._yes
        return [float(v) for v in logits.softmax(-1)[:, yes]]


class Vqa(_Model):
    """ "Is there a {entity}?": probability of yes against no, for each entity."""

    threshold = 0.5

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """In [0, 1]."""
        asked = [(item.image.convert("RGB"), f"is there {with_article(e)}?") for item in items for e in item.entities]
        answers = iter(self._probability([i for i, _ in asked], [q for _, q in asked], True) if asked else [])
        return [{entity: next(answers) for entity in item.entities} for item in items]


class VqaScore(_Model):
    """ "Does this figure show {prompt}?": probability of yes among all answers, for the whole image."""

    name = "vqascore"
    threshold = None

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """In [0, 1]."""
        questions = [f'Does this figure show "{item.prompt}"? Please answer yes or no.' for item in items]
        images = [item.image.convert("RGB") for item in items]
        return [{"": value} for value in self._probability(images, questions, False)]
