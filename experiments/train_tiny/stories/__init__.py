"""English for a very small model: short stories, little facts and dialogues, made up from a grammar.

    python -m experiments.train_tiny.stories --count=20

prints twenty of them. Nothing is read from anywhere: every sentence comes from the templates here, so the text is the
same for the same seed, and anyone may use it.
"""
