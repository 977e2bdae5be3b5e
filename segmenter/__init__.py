"""Face parsing: nineteen classes per pixel in CelebAMask-HQ order."""

from segmenter.labels import CLASSES
from segmenter.parser import Parser, load_parser, parser_names

__all__ = ["CLASSES", "Parser", "load_parser", "parser_names"]
