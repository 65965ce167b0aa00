// OpenAI's client for JavaScript; the same report as report.py.
import { createRequire } from "node:module";

const [url, model, key, root] = process.argv.slice(2);
const OpenAI = createRequire(`${root}/`)("openai");
const question = "Name the capital of France.";

async function ask(prompt, apiKey, n, stream) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
  const answer = await client.chat.completions.create({
    model, messages: [{ role: "user", content: prompt }], temperature: 0, max_tokens: 20, n, stream,
  });
  if (!stream) return answer.choices[0].message.content;
  let text = "";
  for await (const chunk of answer) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
}

async function failure(work) {
  try {
    return { classes: [], status: 200, message: await work() };
  } catch (error) {
    const classes = [];
    for (let kind = error; kind; kind = Object.getPrototypeOf(kind)) classes.push(kind.constructor.name);
    return { classes, status: error.status, message: String(error).slice(0, 500) };
  }
}

const long = "word ".repeat(9000);
const report = {
  whole: await ask(question, key, 1, false),
  streamed: await ask(question, key, 1, true),
  overflow: await failure(() => ask(long, key, 1, false)),
  "overflow streamed": await failure(() => ask(long, key, 1, true)),
  key: await failure(() => ask(question, "wrong", 1, false)),
};
console.log("READY");
await new Promise((line) => process.stdin.once("data", line));
process.stdin.destroy();
report.busy = await failure(() => ask(question, key, 16, false));
console.log("REPORT " + JSON.stringify(report));
