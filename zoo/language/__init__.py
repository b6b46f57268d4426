"""What the families that use language models share: networks, tokenizers, log-probabilities, embeddings, answers."""

from zoo.language.answering import answer_prompts
from zoo.language.models import LanguageModel, Lora
from zoo.language.text_embedding import HuggingFaceEncoder, embed_texts
from zoo.language.tokenizers import BytePairs, TokenizerMaker, Words, require_eos

__all__ = [
    "BytePairs",
    "HuggingFaceEncoder",
    "LanguageModel",
    "Lora",
    "TokenizerMaker",
    "Words",
    "answer_prompts",
    "embed_texts",
    "require_eos",
]
