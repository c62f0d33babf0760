"""From a source of rows to tokenised training rows.

Start at :func:`medcot.data.dataset.load_dataset`; then ``split_cases`` and
``selection.choose_rows``. Two formats have one owner each: the text of a row
:mod:`medcot.data.prompts`, its tokens and labels
:mod:`medcot.data.tokenization`. May import: config, hardware, credentials, records, errors, paths.
"""
