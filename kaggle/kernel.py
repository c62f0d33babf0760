"""Does fine-tuning on medical reasoning help a small language model? One run, with its verdict.

The model is tested on medical questions that are kept out of its training. Then it is fine-tuned
on other questions, each with a chain of thought and an answer: a LoRA adapter (a small set of added
weights) is trained, and the model's own weights stay as they are. Then the same test is repeated.
Statistics tell whether the difference is more than chance; a frequent verdict is "no evidence".

Where to find the result: the log ends with the verdict and the table of scores. The output holds
`report.html` (scores, figures, answers before and after, side by side), the figures as PNG, the
tutorial with this run's numbers (`tutorial.html`), and the adapter in `run/adapter`.

How to read this file: first the options, then the settings of the session, then the run in six
steps. medcot, a Python project for such runs, wrote it with `medcot kaggle build`; one
commit and one set of options always give the same file. medcot's sources are packed at the end of
this file, or, if that would make it too large, in a data set that the kernel mounts.

Generated answers are research output, not medical advice.
"""

# What the run computes. To try something else, copy this kernel and change a value. (`preset` names
# the set that the other values started from; changing it does not change them.) "Hub" is Hugging
# Face's. Options without a comment are rarely changed: medcot's docs/options.md explains them.
OPTIONS = {}

# What the session does: `limit_s` is the longest it may take and `margin_s` the part of that kept
# for saving, both in seconds. The labels are the names under which it looks for your secrets; the
# packages under `unused` are not installed.
SESSION = {}


def run():
    """Carry out the run, step by step. A step that fails ends the kernel and says why."""
    # Unpack medcot's sources, and check that they are undamaged.
    session = unpack()

    # Look around: versions, GPUs, and which secrets are attached.
    session.look()

    # Install the packages that Kaggle's image lacks, at pinned versions. Its PyTorch is kept.
    session.install()

    # The run itself: score the model, fine-tune it, score it again, compare. A session that runs
    # out of time saves its work first, and another one can continue from there.
    session.train()

    # Write the pages to read: the report with its figures, the tutorial with this run's numbers.
    session.publish()

    # Print the verdict and the table of scores, and list every file with its checksum.
    session.finish()


def unpack():
    """Unpack medcot into a temporary folder, check it, and return the session's steps."""
    import bz2
    import hashlib
    import json
    import os
    import sys
    import tempfile
    import time
    from pathlib import Path

    def checksum(files):
        listing = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    def as_file(values):
        text = json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True)
        return f"{text}\n".encode()

    started, root = time.time(), Path(os.environ.get("KAGGLE_ROOT", "/kaggle"))
    if not CODE:
        sys.exit(
            "medcot: this is the template, which carries no run. On your own machine, run\n"
            "  python kaggle/push.py build --preset kaggle-t4\n"
            "and push the folder that it names. This session ends here and needs no GPU."
        )
    digits = [chr(code) for code in range(33, 127) if chr(code) not in "\"'\\"]
    values, text = {one: at for at, one in enumerate(digits)}, "".join(PACKED.split())
    pairs = zip(text[::2], text[1::2], strict=True)
    bits = "".join(f"{values[one] * 91 + values[other]:013b}" for one, other in pairs)
    packed = int(f"0{bits[: len(bits) // 8 * 8]}", 2).to_bytes(len(bits) // 8, "big")
    if not packed:
        mounted = sorted((root / "input").rglob(f"medcot-{CODE[:16]}.bundle"))
        if not mounted:
            sys.exit(f"medcot: no data set with code {CODE[:16]} is mounted under {root / 'input'}")
        packed = mounted[0].read_bytes()
    index, _, contents = bz2.BZ2Decompressor().decompress(packed).partition(b"\n")
    files, start = {}, 0
    for name, size in json.loads(index).items():
        files[name] = contents[start : start + size]
        start += size
    if checksum(files) != CODE:
        sys.exit("medcot: the packed sources are damaged: their checksum is not the pushed one")
    files |= {"config.json": as_file(OPTIONS), "job.json": as_file(SESSION)}
    bundle = checksum(files)  # another one if the options were changed: another run
    print(f"medcot bundle {bundle}", flush=True)
    if bundle != BUNDLE:
        print("the options are not those that were built: this is a run of its own", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="medcot-"))
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    sys.path.insert(0, str(folder / "package"))
    from medcot.kaggle.session.main import open_session

    return open_session(folder, root, bundle=bundle, started=started)


# ----------------------------------------------------------------------------------------------
# Nothing to read from here on: the checksums of the run and of medcot's sources, and the sources.

BUNDLE = ""
CODE = ""
PACKED = ""

if __name__ == "__main__":
    run()
