"""Does fine-tuning on medical reasoning help a small language model? One run, with its verdict.

The model answers medical questions that it is never trained on. Then it is fine-tuned on other
questions, whose answers are reasoned out step by step: a LoRA adapter learns, and the model's own
weights stay as they are. Then it answers the first questions again. A paired test tells whether
the difference is more than chance; "no evidence" is a possible verdict, and a frequent one.

Where to look: the log ends with the verdict and the table of scores. The output holds `report.html`
(scores, figures, answers before and after, side by side), the figures as PNG, and the adapter in
`run/adapter`. The steps of the run follow its options.

The file was written by medcot, a Python project for such runs (`python kaggle/push.py build`): two
builds of one commit are the same, byte for byte. medcot's sources are packed into the end of this
file, or into a data set that the kernel mounts.

Generated answers are research output, not medical advice.
"""

# What the run computes. To try something else, copy this kernel and change a value.
OPTIONS = {}

# How long this session may take (in seconds), and under which names it looks for your secrets.
SESSION = {}


def run():
    """Carry out the run, step by step. A step that fails ends the kernel and says why."""
    # Unpack medcot, and check that it is what was pushed.
    session = unpack()

    # Look around: versions, GPUs, and which secrets are attached.
    session.look()

    # Install what Kaggle's image lacks, at pinned versions. Its torch stays as it is.
    session.install()

    # The run itself: score the model, fine-tune it, score it again, compare. A session that runs
    # out of time saves its work first; the next one continues from there.
    session.train()

    # Write what people read: the report and its figures, and the tutorial with this run's numbers.
    session.publish()

    # Print the verdict and the table of scores, and list every file with its checksum.
    session.finish()


def unpack():
    """Unpack medcot into a temporary folder, check it, and return the session's steps."""
    import base64
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
    packed = base64.b85decode("".join(PACKED.split()))
    if not packed:
        mounted = sorted((root / "input").rglob(f"medcot-{CODE[:16]}.bundle"))
        if not mounted:
            sys.exit(f"medcot: no data set with code {CODE[:16]} is mounted under {root / 'input'}")
        packed = mounted[0].read_bytes()
    index, _, contents = bz2.decompress(packed).partition(b"\n")
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
