"""The training of the bundled model: `python -m bench.tiny_coder.train --out FOLDER`. Serving needs none of it."""
