"""Does the same run on Kaggle: bundles it, pushes it, follows it, and fetches the result.

``client`` runs on your machine, ``session`` on Kaggle's. Start at
:mod:`medcot.kaggle.client.orchestrate`. May import: planning, data, runs and the layers below
them.
"""
