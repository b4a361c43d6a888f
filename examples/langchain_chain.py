"""LangChain through a gateway: a prompt template, the swarm's model, and an answer that is held to a schema.

llamanet gateway
python examples/langchain_chain.py http://127.0.0.1:8080/v1
"""

import sys
from typing import Literal

import pydantic
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


class Animal(pydantic.BaseModel):
    """An animal."""

    name: str = pydantic.Field(max_length=20)
    legs: Literal[0, 2, 4, 6, 8]


model = ChatOpenAI(base_url=sys.argv[1], api_key="none", model="auto", temperature=0, max_tokens=64)
prompt = ChatPromptTemplate.from_messages([("system", "You know animals."), ("user", "Describe a {animal}.")])

# The nodes' grammar allows nothing but what the schema says, whatever the model.
chain = prompt | model.with_structured_output(Animal, method="json_schema")
print(repr(chain.invoke({"animal": "llama"})))
