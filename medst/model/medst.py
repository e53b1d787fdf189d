"""MedST: encoders, heads and the pooling parameters, from a batch to embeddings.

What must not live here: losses, optimisation, reading of foreign weights (weights.py).

Legend: B pairs, L laterals, P patches of one image, M patches of a pair, N word slots without [CLS], D width,
E embedding width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig

from medst.config import Behaviour, Config, ModelConfig
from medst.data.batch import Batch
from medst.model import weights
from medst.model.experts import LearnedExperts, ViewExperts
from medst.model.heads import ElementPooling, ProjectionHead, prototypes
from medst.model.image import ImageEncoder
from medst.model.initialisation import stream
from medst.model.outputs import Embeddings, ImageEmbeddings, ImageFeatures, TextEmbeddings, TextFeatures
from medst.model.text import TextEncoder, bert_config

_BERT_POSITIONS = 512


class MedST(nn.Module):
    """The model of one trial.

    >>> model = MedST.create(Config(), vocabulary_size=1000)
    >>> model.save_pretrained("folder")
    >>> model = MedST.from_pretrained("folder")
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        image_size: int,
        max_tokens: int,
        architecture: BertConfig,
        padding: Behaviour = "corrected",
        seed: int = 0,
    ) -> None:
        """Random initialisation from named streams of `seed`; pretrained weights are for `create`.

        Args:
            config: switches and sizes.
            image_size: side in pixels of the images the model sees.
            max_tokens: longest caption in tokens; `padding=released` pads the words to it.
            architecture: of the text encoder.
            padding: released: padding words enter the local head's BatchNorm; corrected: words alone do.
            seed: of the trial.
        """
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.max_tokens = max_tokens
        self.padding: Behaviour = padding
        self.image_encoder = ImageEncoder(config.image, config.experts, image_size=image_size, seed=seed,
                                          initialisation=config.initialisation)
        self.text_encoder = TextEncoder(architecture, config.text, seed=seed)
        heads = config.heads

        def head(name: str, width: int) -> ProjectionHead:
            with stream(seed, f"heads.{name}"):
                return ProjectionHead(width, heads.hidden_width, heads.embedding_width)

        self.image_head = head("image", config.image.width)
        self.patch_head = head("patch", config.image.width)
        self.report_head = head("report", architecture.hidden_size)
        self.word_head = head("word", architecture.hidden_size)
        with stream(seed, "pooling.word"):
            self.word_pooling = ElementPooling(heads.embedding_width)
        with stream(seed, "pooling.patch"):
            self.patch_pooling = ElementPooling(heads.embedding_width)
        with stream(seed, "prototypes"):
            self.prototypes = prototypes(heads.num_prototypes, heads.embedding_width) if heads.num_prototypes else None
        self.gives_attention = False

    @classmethod
    def create(cls, config: Config, vocabulary_size: int) -> MedST:
        """The model of a trial before its first step, with pretrained weights where the config names them.

        Raises:
            ValueError: pretrained files that are missing or do not fit; the message says how to bring them.
        """
        text = config.model.text
        if text.name is None:
            positions = max(_BERT_POSITIONS, config.data.caption_tokens)
            architecture = bert_config(text, vocabulary_size, positions)
        else:
            architecture = weights.pretrained_bert_config(text, vocabulary_size)
        model = cls(config.model, image_size=config.data.crop_size, max_tokens=config.data.caption_tokens,
                    architecture=architecture, padding=config.objective.local.padding, seed=config.seed)
        weights.load_initial_weights(model)
        for encoder in (model.image_encoder, model.text_encoder):
            encoder.micro_batch, encoder.recompute = config.training.micro_batch, config.training.recompute
        if config.training.pack_captions:
            model.text_encoder.pack()
        objective = config.objective
        model.gives_attention = objective.lambda_local > 0 and objective.local.weighting == "attention"
        model.image_encoder.gives_attention = model.gives_attention
        if config.training.compile:
            model.compile_parts()
        return model

    def compile_parts(self) -> None:
        """Have torch.compile fuse the operations of the experts, the text layers and the heads.

        Parts, not the whole: how many tokens each expert serves differs from batch to batch, and the parts take that
        as one symbolic size. Weights and their names stay as they are.
        """
        parts: list[nn.Module] = [*self.text_encoder.bert.encoder.layer, self.image_head, self.patch_head,
                                  self.report_head, self.word_head]
        for module in self.image_encoder.modules():
            if isinstance(module, ViewExperts | LearnedExperts):
                parts += module.experts
        for part in parts:
            part.compile(dynamic=True)

    @property
    def vocabulary_size(self) -> int:
        return self.text_encoder.bert.config.vocab_size

    def forward(self, batch: Batch) -> Embeddings:
        """A batch -> unit embeddings."""
        image_features = self.encode_images(batch.frontal, batch.frontal_view, batch.lateral, batch.lateral_view,
                                            batch.lateral_row)
        image = self.project_images(image_features)
        text_features = self.encode_text(batch.token_ids, batch.attention_mask, batch.word_of_token,
                                         with_attention=self.gives_attention)
        text = self.project_text(text_features)
        return Embeddings(
            image=image.image,
            report=text.report,
            patches=image.patches,
            patch_mask=image.patch_mask,
            words=text.words,
            word_mask=text.word_mask,
            balance_loss=image_features.balance_loss,
            expert_share=image_features.expert_share,
            word_attention=None if text_features.attention is None else text_features.attention.detach(),
            patch_attention=image_features.attention,
        )

    def encode_images(
        self,
        frontal: Tensor,
        frontal_view: Tensor,
        lateral: Tensor | None = None,
        lateral_view: Tensor | None = None,
        lateral_row: Tensor | None = None,
    ) -> ImageFeatures:
        """Encode pairs, or images of one view alone; shapes as in `ImageEncoder.forward`."""
        return self.image_encoder(frontal, frontal_view, lateral, lateral_view, lateral_row)

    def encode_text(
        self, token_ids: Tensor, attention_mask: Tensor, word_of_token: Tensor, with_attention: bool = False
    ) -> TextFeatures:
        """Encode reports; shapes as in `TextEncoder.forward`."""
        num_slots = self.max_tokens if self.padding == "released" else None
        return self.text_encoder(token_ids, attention_mask, word_of_token, num_slots=num_slots,
                                 with_attention=with_attention)

    def project_images(self, features: ImageFeatures) -> ImageEmbeddings:
        """Features -> unit vectors (B, E) and unit patch vectors (B, M, E)."""
        frontal, lateral, row = features.frontal_patches, features.lateral_patches, features.lateral_row
        num_pairs, num_patches, _ = frontal.shape
        # One batch of patches, so that the statistics are those of all patches that exist.
        flat = self.patch_head(torch.cat([frontal.flatten(0, 1), lateral.flatten(0, 1)]))
        patches, lateral_patches = flat.split([num_pairs * num_patches, row.shape[0] * num_patches])
        patches = patches.view(num_pairs, num_patches, -1)
        mask = torch.ones(num_pairs, num_patches, dtype=torch.bool, device=flat.device)
        if row.shape[0] > 0:
            lateral_patches = lateral_patches.view(row.shape[0], num_patches, -1)
            has_lateral = torch.zeros_like(mask).index_fill(0, row, True)
            patches = torch.cat([patches, torch.zeros_like(patches).index_copy(0, row, lateral_patches)], dim=1)
            mask = torch.cat([mask, has_lateral], dim=1)
        return ImageEmbeddings(image=self.image_head(features.cls), patches=patches, patch_mask=mask)

    def project_text(self, features: TextFeatures) -> TextEmbeddings:
        """Features -> unit vectors (B, E) and unit word vectors (B, N, E)."""
        num_reports, num_words, _ = features.words.shape
        flat = features.words.flatten(0, 1)
        if self.padding == "released":
            words = self.word_head(flat)
        else:
            projected = self.word_head(flat[features.word_index])
            words = projected.new_zeros(flat.shape[0], projected.shape[1])
            words = words.index_copy(0, features.word_index, projected)
        return TextEmbeddings(report=self.report_head(features.report), words=words.view(num_reports, num_words, -1),
                              word_mask=features.word_mask)

    def embed_images(self, features: ImageFeatures) -> Tensor:
        """(B, E) unit embeddings, as in `project_images`."""
        return self.image_head(features.cls)

    def embed_patches(self, patches: Tensor) -> Tensor:
        """(B, P, D) patches of one view -> (B, P, E) unit embeddings."""
        return self.patch_head(patches.flatten(0, 1)).view(*patches.shape[:2], -1)

    def embed_reports(self, features: TextFeatures) -> Tensor:
        """(B, E) unit embeddings, as in `project_text`."""
        return self.report_head(features.report)

    def project_reports(self, features: TextFeatures) -> Tensor:
        """(B, E) embeddings before they are brought to unit length."""
        return self.report_head.project(features.report)

    def embed_words(self, features: TextFeatures) -> tuple[Tensor, Tensor]:
        """Unit word embeddings (B, N, E) and the mask (B, N), True = a word of the text: no [CLS], no [SEP]."""
        projected = self.project_text(features)
        place = torch.arange(projected.word_mask.shape[1], device=projected.word_mask.device)
        last = (place * projected.word_mask).amax(dim=1, keepdim=True)
        return projected.words, projected.word_mask & (place != last)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors into `folder` (made if absent); returns the folder."""
        return weights.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MedST:
        """The model that `save_pretrained` wrote, in evaluation mode.

        Raises:
            ValueError: no such folder, or weights that do not fit its config.json.
        """
        description, state = weights.read(Path(folder))
        model = cls(
            description.config,
            image_size=description.image_size,
            max_tokens=description.max_tokens,
            architecture=description.architecture,
            padding=description.padding,
        )
        weights.load(model, state, source=str(folder))
        return model.eval()
