"""What the families that use language models share: embeddings of texts, and answers to prompts."""

from zoo.language.answering import answer_prompts
from zoo.language.text_embedding import HuggingFaceEncoder, embed_texts

__all__ = ["HuggingFaceEncoder", "answer_prompts", "embed_texts"]
