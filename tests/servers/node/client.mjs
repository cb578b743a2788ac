// Ask a server with OpenAI's client for JavaScript: client.mjs URL MODEL, in a folder that has the package.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "How many legs do three cats have?" }];
const options = { model, max_tokens: 16, temperature: 0 };

assert.deepEqual((await client.models.list()).data.map((each) => each.id), [model]);

const whole = await client.chat.completions.create({ ...options, messages });
const text = whole.choices[0].message.content;
assert.ok(text.length > 5 && whole.usage.completion_tokens === 16, JSON.stringify(whole));

let streamed = "", usage;
const stream_options = { include_usage: true };
const chunks = await client.chat.completions.create({ ...options, messages, stream: true, stream_options });
for await (const chunk of chunks) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, 16);

// The client's own helper puts the chunks of a stream together.
const runner = client.chat.completions.stream({ ...options, messages, n: 2, logprobs: true, top_logprobs: 1 });
const final = await runner.finalChatCompletion();
assert.equal(final.choices.length, 2);
for (const choice of final.choices) {
    assert.equal(choice.message.content, text);
    assert.equal(choice.logprobs.content.map((entry) => entry.token).join(""), text);
}

const properties = { legs: { type: "integer" } };
const schema = { type: "object", properties, required: ["legs"], additionalProperties: false };
const response_format = { type: "json_schema", json_schema: { name: "legs", schema, strict: true } };
const parsed = await client.chat.completions.parse({ ...options, max_tokens: 60, messages, response_format });
assert.equal(typeof JSON.parse(parsed.choices[0].message.content).legs, "number");

const completion = await client.completions.create({ ...options, prompt: ["Question: 1+1?\nAnswer:", "a"], n: 2 });
assert.equal(completion.choices.length, 4);

await assert.rejects(client.chat.completions.create({ ...options, messages, temperature: -1 }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ ...options, model: "gpt-4", messages }), OpenAI.NotFoundError);

// Leaving a stream stops it.
const abandoned = await client.chat.completions.create({ ...options, max_tokens: 1500, messages, stream: true });
for await (const _ of abandoned) break;
console.log("ok");
