"""embed.py DIR SENTENCE: loads the sentence encoder in DIR and prints the sentence's embedding as one line of JSON."""

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")

from sentence_transformers import SentenceTransformer  # noqa: E402  (the filter must come first)

directory, sentence = sys.argv[1:]
begin = time.monotonic()
model = SentenceTransformer(directory, device="cpu")
loaded = time.monotonic()
vector = model.encode([sentence], show_progress_bar=False)[0]
print(json.dumps({"embedding": [float(x) for x in vector], "load_s": loaded - begin}))
