// Checks the page of the C++ server in a browser, or takes a picture: page.mjs ROOT SERVER [PICTURE.png]

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEMO, browse, decode, decoded, serve } from "./server.mjs";

const picture = process.argv[4];
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const QUESTION = "Question: How many legs do three cats have?\nAnswer:";
const BREAD = "Question: A baker sells 30 loaves of bread in the morning and twice as many in the afternoon. " +
    "How many loaves does he sell in a day?\nAnswer:";
const KINDS = ["accepted", "replaced", "drawn", "forced"];

/** What a text on the page shows: its tokens, the table, and the figures above it. */
const shown = (page, index = 0) => page.locator(".run").nth(index).evaluate((run, kinds) => {
    const is = (element, names) => names.find((name) => element.classList.contains(name));
    const rows = [...run.querySelectorAll("tbody tr")];
    const models = Object.fromEntries(rows.map((row) => [row.className, row.querySelector("button").textContent]));
    const tokens = [...run.querySelectorAll(".text .token")];
    return {
        text: tokens.filter((token) => !token.classList.contains("end")).map((token) => token.textContent).join(""),
        origins: tokens.map((token) => [is(token, kinds), models[is(token, Object.keys(models))]]),
        empty: tokens.filter((token) => !token.textContent).length,
        table: Object.fromEntries(rows.map((row) => [models[row.className], [...row.cells].slice(1).map((cell) =>
            Number(cell.textContent))])),
        figures: Object.fromEntries([...run.querySelectorAll("dd")].map((each) => [each.className, each.textContent])),
        ratio: run.querySelector(".ratio").textContent,
    };
}, KINDS);

/** The answer of the server to the same request, past the page. */
async function answer(server, body) {
    const cos = { strategy: "cos", token_origins: true, ...body.cos };
    const text = JSON.stringify({ model: server.model, temperature: 0, seed: 1, max_tokens: 60, ...body, cos });
    return (await fetch(`${server.url}/v1/completions`, { method: "POST", body: text })).json();
}

async function open(browser, server, settings = {}) {
    const page = await browser.newPage({ viewport: { width: 900, height: 800 }, ...settings });
    page.setDefaultTimeout(20_000);
    page.said = [];
    page.on("console", (message) => page.said.push(message.text()));
    page.on("pageerror", (error) => page.said.push(String(error)));
    page.on("request", (request) => assert.equal(new URL(request.url()).origin, server.url, request.url()));
    await page.goto(server.url);
    return page;
}

/** The counts and rates on the page are those of its tokens. */
function checkFigures({ origins, table, figures }) {
    const count = (kind, name) => origins.filter((each) => each[0] === kind && (!name || each[1] === name)).length;
    for (const [model, counts] of Object.entries(table)) {
        assert.deepEqual(counts, KINDS.map((kind) => count(kind, model)), model);
    }
    const [accepted, replaced] = [count("accepted"), count("replaced")];
    const rate = accepted + replaced ? `${Math.round(100 * accepted / (accepted + replaced))} %` : "–";
    assert.equal(figures.acceptance, rate);
    assert.equal(Number(figures.tokens), origins.length);
    // The first token comes no later than the last one.
    const [speed, first] = [figures.speed, figures.first].map(parseFloat);
    assert.ok(figures.stride >= 1 && first > 0 && speed > 0, JSON.stringify(figures));
    assert.ok(first <= 1000 * origins.length / (speed - 0.5) + 0.5, JSON.stringify(figures));
}

/** Text and origins are those that the API tells, greedy and sampled. */
async function streams(page, server) {
    for (const temperature of [0, 0.8]) {
        await decoded(page, { prompt: QUESTION, strategy: "cos", temperature });
        const { choices: [choice] } = await answer(server, { prompt: QUESTION, temperature });
        const got = await shown(page);
        assert.equal(got.text, choice.text);
        const wanted = choice.token_origins.map(({ origin, model }) => [origin, model ?? "combined"]);
        assert.deepEqual(got.origins, wanted);
        assert.ok(new Set(wanted.map(String)).size > 3, "there is only one kind of token");
        checkFigures(got);
    }
}

/** The keyboard and the mouse find out how a token came about, and a model can be picked. */
async function tells(page) {
    const { origins: [first, second] } = await shown(page);
    const text = page.getByRole("group", { name: "Text of cos" });
    await text.focus();
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowRight");
    const detail = page.locator(".detail");
    assert.match(await detail.textContent(), new RegExp(`^".+": .*${second[1]}`));
    await text.locator(".token").first().hover();
    assert.match(await detail.textContent(), new RegExp(`^".+": .*${first[1]}`));
    const button = page.getByRole("button", { name: "math" });
    await button.click();
    assert.equal(await button.getAttribute("aria-pressed"), "true");
    const picked = (await shown(page)).origins.filter(([, model]) => model === "math").length;
    assert.equal(await text.locator(".picked").count(), picked);
    await button.click();
    assert.equal(await page.locator(".picks").count(), 0);
}

/** Decodes with these events in place of the server's answer. */
async function fake(page, events) {
    const body = events.map((event) => `data: ${event}\n\n`).join("");
    await page.route("**/v1/completions", (route) => route.fulfill({ body }), { times: 1 });
    await decoded(page, { prompt: QUESTION, strategy: "auto" });
}

/** Text is never code, and characters of several tokens are whole. */
async function escapes(page) {
    const text = "<script>document.title = 'x'</script>\n\t<b>äß</b> 日本語 🐈 &amp;";
    const further = JSON.stringify({ structured_outputs: { choice: [text] } });
    await decoded(page, { prompt: QUESTION, strategy: "auto", tokens: 200, further });
    const got = await shown(page);
    assert.equal(got.text, text);
    assert.ok(got.origins.some(([kind]) => kind === "forced"), "no token is forced");
    assert.ok(got.empty > 0, "no character has several tokens");
    assert.notEqual(await page.title(), "x");
    checkFigures(got);
    // The vocabulary of the demo has no tokens that are whole elements.
    const token = "<b>&amp;</b>";
    const token_origins = [{ token, bytes: [...Buffer.from(token)], origin: "accepted", model: "<b>base</b>" }];
    await fake(page, [JSON.stringify({ choices: [{ text: token, token_origins }] }), "[DONE]"]);
    const made = await shown(page);
    assert.equal(made.text, token);
    assert.deepEqual(made.origins, [["accepted", "<b>base</b>"]]);
    assert.equal(await page.locator(".run b, .run script").count(), 0);
}

/** Both texts are shown, one after the other, and nothing is wider than a phone. */
async function compares(page) {
    await decoded(page, { prompt: QUESTION, strategy: "auto", compare: true });
    const [plain, fast] = [await shown(page, 0), await shown(page, 1)];
    assert.ok(plain.origins.every(([kind, model]) => kind === "drawn" && model === "combined"));
    assert.equal(fast.text, plain.text);
    assert.match(fast.ratio, /^\d+\.\d\d × standard$/);
    assert.match(await page.getByRole("status").textContent(), /The text is the same\.$/);
    for (const each of [plain, fast]) checkFigures(each);
}

/** A chat is the completion of its template. */
async function chats(page, server) {
    await page.getByLabel("Prompt is").selectOption("a message");
    await decoded(page, { prompt: "How many legs do three cats have?", strategy: "cos" });
    await page.getByLabel("Prompt is").selectOption("a text");
    assert.equal((await shown(page)).text, (await answer(server, { prompt: QUESTION })).choices[0].text);
}

/** The page can be read by all: axe-core finds nothing wrong. */
async function accessible(page) {
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => axe.run({ runOnly: ["wcag2a", "wcag2aa", "best-practice"] }));
    assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]), []);
}

async function onPhones(browser, server) {
    for (const colorScheme of ["light", "dark"]) {
        const page = await open(browser, server, { viewport: { width: 320, height: 640 }, colorScheme });
        await compares(page);
        assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 320, "it scrolls sideways");
        await accessible(page);
        assert.deepEqual(page.said, []);
        await page.close();
    }
}

/** Stopping cancels the request, and another one can follow. */
async function stops(page, server) {
    await decode(page, { prompt: QUESTION, strategy: "standard", tokens: 1000, temperature: 2 });
    await page.locator(".token").nth(5).waitFor();
    await page.getByRole("button", { name: "Stop" }).click();
    await page.getByText(/^Stopped after \d+ tokens\.$/).waitFor();
    for (let i = 0; !server.log.includes('"status":499'); i++) {
        assert.ok(i < 100, `no request was cancelled: ${server.log}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await decoded(page, { prompt: QUESTION, strategy: "auto", tokens: 5 });
    assert.equal((await shown(page)).figures.tokens, "5");
}

/** Errors of the server are shown, and those of the form. */
async function refuses(page, server) {
    const alert = page.getByRole("alert");
    const prompt = "many ".repeat(2000);
    await decoded(page, { prompt, strategy: "auto" });
    const { error } = await answer(server, { prompt });
    assert.equal(await alert.textContent(), `Error: ${error.message}`);
    await decoded(page, { prompt: QUESTION, strategy: "auto", further: "{" });
    assert.match(await alert.textContent(), /JSON/);
    await decoded(page, { prompt: QUESTION, strategy: "auto", tokens: 5 });
    assert.equal(await alert.count(), 0, "an old error is still shown");
    // In the midst of a stream.
    await fake(page, ['{"error": {"message": "the caches are full"}}']);
    assert.equal(await alert.textContent(), "Error: the caches are full");
    await fake(page, []);
    assert.equal(await alert.textContent(), "Error: the answer ended too early");
    // The browser tells of the status 400 by itself.
    assert.deepEqual(page.said.filter((line) => !line.startsWith("Failed to load resource")), []);
}

/** A script that comes from elsewhere does not run, even if somebody gets it into the page. */
async function guards(browser, server) {
    const headers = async () => (await fetch(server.url)).headers;
    const policy = (await headers()).get("content-security-policy");
    assert.match(policy, /^default-src 'none';/);
    assert.ok(!policy.includes("unsafe"), policy);
    assert.notEqual((await headers()).get("content-security-policy"), policy, "the number can be guessed");
    const page = await open(browser, server);
    await page.evaluate(() => {
        document.body.append(Object.assign(document.createElement("script"), { textContent: "document.title = 'x'" }));
        document.body.insertAdjacentHTML("beforeend", "<img src=data: onerror=\"document.title = 'x'\">");
    });
    await page.waitForFunction(() => true);
    assert.notEqual(await page.title(), "x");
    assert.ok(page.said.some((line) => line.includes("Content Security Policy")), "no script was refused");
    await page.close();
}

/** The field for the key appears where keys are wanted, and nothing keeps the key. */
async function keys(browser) {
    const folder = mkdtempSync(join(tmpdir(), "cos-page-"));
    const [config, secrets] = [join(folder, "small.json"), join(folder, "keys")];
    const combine = { kind: "target", model: 0 };
    writeFileSync(config, JSON.stringify({ models: [{ path: `${DEMO}/small` }], combine }));
    writeFileSync(secrets, "secret\n");
    const server = await serve(config, { "--api-keys": secrets });
    try {
        const page = await open(browser, server);
        const field = page.getByLabel("API key");
        await field.waitFor();
        assert.equal(await page.getByRole("alert").textContent(), "Error: the API key is missing or wrong");
        await field.fill("secret");
        await decoded(page, { prompt: QUESTION, strategy: "auto", tokens: 5 });
        assert.equal((await shown(page)).figures.tokens, "5");
        const kept = await page.evaluate(() => localStorage.length + sessionStorage.length + document.cookie.length);
        assert.equal(kept, 0);
        await page.close();
    } finally {
        server.stop();
        rmSync(folder, { recursive: true });
    }
}

async function check(browser) {
    const engine = `${DEMO}/engine.json`;
    await assert.rejects(serve(engine, { "--page": "/nowhere.html" }), /there is no page in \/nowhere\.html/);
    const server = await serve(engine);
    try {
        const page = await open(browser, server);
        for (const test of [streams, tells, escapes, compares, chats, stops]) await test(page, server);
        assert.deepEqual(page.said, []);
        await refuses(page, server);
        await onPhones(browser, server);
        await guards(browser, server);
    } finally {
        server.stop();
    }
    await keys(browser);
    console.log(`page: text, origins, counts, errors and keys, in ${browser.version()}`);
}

/** A picture of three models. */
async function take(browser) {
    const server = await serve(`${DEMO}/three.json`, { "--prepare": 10 });
    try {
        const page = await open(browser, server, { viewport: { width: 880, height: 800 }, deviceScaleFactor: 2 });
        // The first requests of a server and of a page are slow.
        for (const prompt of [QUESTION, BREAD]) await decoded(page, { prompt, strategy: "cos", compare: true });
        await page.locator(".run").last().locator(".replaced.model1").first().hover();
        await page.screenshot({ path: picture, fullPage: true });
    } finally {
        server.stop();
    }
}

const browser = await browse();
try {
    await (picture ? take(browser) : check(browser));
} finally {
    await browser.close();
}
