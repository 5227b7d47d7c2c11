"""Talks to one worker with the openai package: python3 worker_openai.py BASE_URL MODEL KEY.

Every function that begins with `check_` is one conversation; the first assertion that fails ends the script. The
worker runs eight requests at once and lets eight wait.
"""

import asyncio
import math
import sys

import openai

BASE_URL, MODEL, KEY = sys.argv[1:]
# No retries: a failure must be seen, and not be papered over by the client.
OPTIONS = {"base_url": BASE_URL, "api_key": KEY, "max_retries": 0, "timeout": 60.0}
QUESTION = [{"role": "user", "content": "What does a pointsman do?"}]
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


def refused(expected, status, call):
    """The error that `call` raises, which must be of this class and status."""
    try:
        call()
    except expected as error:
        assert error.status_code == status, error
        return error
    raise AssertionError(f"{expected} was expected")


def check_models(client):
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model"), model
    assert [card.id for card in client.models.list().data] == [MODEL]
    refused(openai.NotFoundError, 404, lambda: client.models.retrieve("no-such-model"))


def check_chat_logprobs(client):
    arguments = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, **GREEDY}
    whole = client.chat.completions.create(logprobs=True, top_logprobs=3, **arguments)
    content = whole.choices[0].logprobs.content
    assert len(content) == 8, content
    for entry in content:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0, entry
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs), "greedy takes the likeliest"
    spoken = b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace")
    assert whole.choices[0].message.content in (spoken, spoken.lstrip()), (spoken, whole.choices[0].message)
    streamed = client.chat.completions.create(logprobs=True, top_logprobs=3, stream=True, **arguments)
    entries = [
        entry
        for chunk in streamed
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert [entry.token for entry in entries] == [entry.token for entry in content], entries


def check_completion_echo(client):
    prompt = "The signal box stands"
    answer = client.completions.create(model=MODEL, prompt=prompt, echo=True, max_tokens=5, **GREEDY)
    plain = client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, logprobs=2, **GREEDY)
    assert answer.choices[0].text == prompt + plain.choices[0].text, (answer, plain)
    logprobs = plain.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 5, logprobs
    assert all(len(top) >= 2 for top in logprobs.top_logprobs), logprobs


def check_choices(client):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2], answer


def check_embeddings(client):
    def embed(**arguments):
        return client.embeddings.create(model=MODEL, **arguments)

    # The client asks for base64 by itself and decodes it.
    pair = embed(input=["A train leaves.", "A train arrives."])
    assert [entry.index for entry in pair.data] == [0, 1] and pair.object == "list", pair
    floats = embed(input="A train leaves.", encoding_format="float").data[0].embedding
    for left, right in zip(floats, pair.data[0].embedding, strict=True):
        assert math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-6), (left, right)
    assert math.isclose(math.hypot(*floats), 1.0, rel_tol=1e-4), math.hypot(*floats)
    assert pair.usage.prompt_tokens == pair.usage.total_tokens > 0, pair.usage
    assert len(embed(input=[[5, 6, 7], [8]]).data) == 2
    assert embed(input=[5, 6, 7]).usage.prompt_tokens == 3
    refused(openai.BadRequestError, 400, lambda: embed(input="x", dimensions=3))
    refused(openai.BadRequestError, 400, lambda: embed(input=[]))


def check_errors(client):
    def chat(**arguments):
        return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **arguments})

    error = refused(openai.NotFoundError, 404, lambda: chat(model="no-such-model"))
    assert error.param == "model" and error.type == "NotFoundError", error
    error = refused(openai.BadRequestError, 400, lambda: chat(max_tokens=-1))
    assert error.param == "max_tokens", error
    error = refused(openai.BadRequestError, 400, lambda: chat(response_format={"type": "json_object"}))
    assert error.param == "response_format", error
    stranger = openai.OpenAI(**{**OPTIONS, "api_key": "another"})
    refused(openai.AuthenticationError, 401, lambda: stranger.models.list())


async def check_full_queue():
    """The seventeenth of as many endless streams at once finds no room."""

    async def open_stream(client):
        return await client.completions.create(
            model=MODEL, prompt="x", max_tokens=1500, stream=True, **GREEDY
        )

    async with openai.AsyncOpenAI(**OPTIONS) as client:
        opened = await asyncio.gather(*(open_stream(client) for _ in range(17)), return_exceptions=True)
        refusals = [stream for stream in opened if isinstance(stream, Exception)]
        streams = [stream for stream in opened if not isinstance(stream, Exception)]
        for stream in streams:
            await stream.close()
        assert refusals and all(isinstance(error, openai.InternalServerError) for error in refusals), opened
        assert {error.status_code for error in refusals} == {503}, refusals
        assert all(int(error.response.headers["retry-after"]) >= 1 for error in refusals), refusals
        assert len(streams) >= 8, "those that run and most of those that wait have their places"


def main():
    client = openai.OpenAI(**OPTIONS)
    check_models(client)
    check_chat_logprobs(client)
    check_completion_echo(client)
    check_choices(client)
    check_embeddings(client)
    check_errors(client)
    asyncio.run(check_full_queue())


if __name__ == "__main__":
    main()
