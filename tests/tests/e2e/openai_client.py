"""Talks to the stack with the openai package, as an application would: python3 openai_client.py BASE_URL MODEL.

Every function that begins with `check_` is one conversation; the first assertion that fails ends the script.
"""

import asyncio
import sys

import openai

BASE_URL, MODEL = sys.argv[1:]
# No retries: a failure must be seen, and not be papered over by the client.
OPTIONS = {"base_url": BASE_URL, "api_key": "unused", "max_retries": 0, "timeout": 30.0}
QUESTION = [
    {"role": "system", "content": "You answer questions about railways."},
    {"role": "user", "content": "What does a pointsman do?"},
]
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


def check_models(client):
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL], models
    assert client.models.list().object == "list"


def check_chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12, **GREEDY)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == MODEL, answer
    assert choice.message.role == "assistant" and choice.message.content, choice
    assert choice.finish_reason == "length", choice
    usage = answer.usage
    assert usage.completion_tokens == 12, usage
    assert usage.total_tokens == usage.prompt_tokens + 12, usage
    return choice.message.content


def check_chat_stream(client, expected):
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected, (text, expected)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == "length" and not any(reasons[:-1]), reasons
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12, chunks[-1]
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens is not None, chunks[-1]
    assert len({chunk.id for chunk in chunks}) == 1, "one id a stream"


def check_completion(client):
    arguments = {"model": MODEL, "prompt": "The signal box stands", "max_tokens": 10, **GREEDY}
    plain = client.completions.create(**arguments)
    assert plain.object == "text_completion" and plain.choices[0].text, plain
    assert plain.usage.completion_tokens == 10, plain.usage
    streamed = client.completions.create(stream=True, **arguments)
    text = "".join(chunk.choices[0].text for chunk in streamed if chunk.choices)
    assert text == plain.choices[0].text, (text, plain)


def check_prompts_as_tokens(client):
    answer = client.completions.create(model=MODEL, prompt=[10, 11, 12, 13], max_tokens=3, **GREEDY)
    assert answer.usage.prompt_tokens == 4, answer.usage


def check_errors(client):
    for expected, status, call in [
        # The worker's own: the model and the values are its business.
        (openai.NotFoundError, 404, {"model": "no-such-model", "messages": QUESTION}),
        (openai.BadRequestError, 400, {"model": MODEL, "messages": QUESTION, "max_tokens": -1}),
        (openai.BadRequestError, 400, {"model": MODEL, "messages": QUESTION, "temperature": -1}),
    ]:
        try:
            client.chat.completions.create(**call)
        except expected as error:
            assert error.status_code == status and error.body["message"], error
        else:
            raise AssertionError(f"{call} passed")


async def stream_text(client, question):
    messages = [QUESTION[0], {"role": "user", "content": question}]
    stream = await client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=40, stream=True, **GREEDY
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def cancel_midway(client):
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1500, stream=True, **GREEDY
    )
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == 3:
            break
    await stream.close()
    return seen


async def check_concurrent_streams():
    async with openai.AsyncOpenAI(**OPTIONS) as client:
        questions = [f"What happens at station {number}?" for number in range(8)]
        texts, seen = await asyncio.gather(
            asyncio.gather(*(stream_text(client, question) for question in questions)),
            cancel_midway(client),
        )
        assert seen == 3 and all(texts), (seen, texts)
        # Alone each stream says the same as among the others: nothing of theirs got mixed in.
        assert await stream_text(client, questions[0]) == texts[0]


def main():
    client = openai.OpenAI(**OPTIONS)
    check_models(client)
    text = check_chat(client)
    check_chat_stream(client, text)
    check_completion(client)
    check_prompts_as_tokens(client)
    check_errors(client)
    asyncio.run(check_concurrent_streams())


if __name__ == "__main__":
    main()
