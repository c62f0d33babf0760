"""Serves the model of a run or an export to OpenAI clients, by a maintained model server.

Start at :func:`medcot.serving.workflow.serve`.
"""
