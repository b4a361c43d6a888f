"""OpenAI's SDK, unchanged, through a gateway: a list of models, a streamed answer, and which node gave it.

llamanet gateway
python examples/openai_sdk.py http://127.0.0.1:8080/v1
"""

import sys

from openai import OpenAI

with OpenAI(base_url=sys.argv[1], api_key="none") as client:
    print("models:", *(model.id for model in client.models.list()))

    turns = [{"role": "user", "content": "What is a llama?"}]
    for chunk in client.chat.completions.create(model="auto", messages=turns, max_tokens=40, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    # The gateway says in headers what OpenAI's API has no field for.
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=turns, max_tokens=8)
    print("answered by", raw.headers["x-llamanet-node"])
