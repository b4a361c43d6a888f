"""A file of prompts, one a line, over all nodes at once. Broken off and started again, it asks only for the rest.

python examples/batch_file.py 127.0.0.1:8001 prompts.txt answers.jsonl
"""

import json
import sys
from pathlib import Path

from llamanet.client import Client

bootstrap, prompts_file, answers_file = sys.argv[1:]
prompts = Path(prompts_file).read_text(encoding="utf-8").splitlines()

with (
    Client(bootstrap_nodes=bootstrap) as client,
    client.map(prompts, max_tokens=24, temperature=0.0, journal=f"{answers_file}.journal") as results,
    open(answers_file, "w", encoding="utf-8") as answers,
):
    failed = 0
    for result in results:
        # In the order of the prompts. One that fails does not end the batch.
        failed += result.error is not None
        answer = {"prompt": result.prompt, "error": str(result.error)} if result.error else {"text": result.text}
        answers.write(json.dumps(answer) + "\n")
        print(f"{result.index + 1} of {len(prompts)}", file=sys.stderr)

sys.exit(1 if failed else 0)
