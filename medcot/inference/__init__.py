"""Uses a loaded model: generates, computes log-likelihoods, answers single questions.

Start at :mod:`medcot.inference.generate`; ``loglikelihood`` scores, ``ask`` answers a question
with the model of a run. ``continuous_batching`` and its ``kv_cache`` keep a GPU busy while
answers end at different lengths. May import: engines, evaluation, data, runs and the layers
below them.
"""
