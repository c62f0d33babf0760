"""Turns a source of rows into tokenized training rows.

Start at :func:`medcot.data.dataset.load_dataset`, then ``dataset.split_cases`` and
``selection.select_training_rows``. Two formats have one owner each: :mod:`medcot.data.prompts` for
the text of a row, :mod:`medcot.data.tokenization` for its tokens and labels. May import: config,
hardware, credentials, records, errors, paths.
"""
