"""What a loaded model is used for: continuations, log-likelihoods, an answer to one question.

Start at :mod:`medcot.inference.generate`; ``loglikelihood`` scores, ``ask`` answers one question
of a run. ``continuous_batching`` and its ``kv_cache`` keep a GPU busy while answers end at
different lengths. May import: engines, evaluation, data, runs and what lies below them.
"""
