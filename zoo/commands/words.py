"""Commands for models of words: nearest, analogy and vectors."""

import argparse

import zoo
from zoo.checks.errors import UserError
from zoo.commands.inputs import knows_words
from zoo.training.shell import pasted


def nearest(args: argparse.Namespace) -> None:
    """List the words whose vectors are nearest to the vector of a word."""
    _print_words(_words(args.source).nearest, args.word, args.n)


def analogy(args: argparse.Namespace) -> None:
    """List the words that complete the analogy: A is to B as C is to ..."""
    _print_words(_words(args.source).analogy, args.a, args.b, args.c, args.n)


def vectors(args: argparse.Namespace) -> None:
    """Write word vectors in the word2vec format, which gensim's KeyedVectors reads."""
    model = _words(args.source)
    model.export(args.output, args.binary)
    print(f"Wrote {len(model.words):,} vectors of {model.hparams.dim} numbers to {pasted(args.output)}")


def _words(source: str):
    model = zoo.load(source)
    if not knows_words(model):
        raise UserError(f"{source} is a {type(model).__name__}, which has no words: name a skip-gram model")
    return model


def _print_words(find, *arguments) -> None:
    for word, cosine in find(*arguments):
        print(f"{cosine:.3f}  {word}")
