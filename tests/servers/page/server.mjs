// The C++ server with its page, started and stopped, and a browser.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { basename } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [root, program] = process.argv.slice(2);
export const DEMO = `${root}/models/demo`;
const PAGE = `${root}/bindings/cpp/examples/page.html`;

/** A server that listens: its address, its log, and how to stop it. */
export async function serve(config, options = {}) {
    const all = { "--port": 0, "--prepare": 0, "--page": PAGE, ...options };
    const words = [config, ...Object.entries(all).flat().map(String)];
    const child = spawn(program, words, { stdio: ["ignore", "pipe", "pipe"] });
    const server = { model: basename(config, ".json"), log: "", stop: () => child.kill() };
    child.stderr.on("data", (data) => { server.log += data; });
    const ended = once(child, "exit").then(() => { throw new Error(`the server has ended: ${server.log}`); });
    ended.catch(() => {});
    const [line] = await Promise.race([once(createInterface(child.stdout), "line"), ended]);
    server.url = line.replace("listening on ", "http://");
    return server;
}

/** A new browser with no settings of anybody. */
export function browse() {
    const { BROWSER, BROWSER_LIBRARIES, ...env } = process.env;
    if (BROWSER_LIBRARIES) env.LD_LIBRARY_PATH = BROWSER_LIBRARIES;
    const quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"];
    return chromium.launch({ executablePath: BROWSER, args: ["--no-sandbox", "--disable-gpu", ...quiet], env });
}

/** Fills in the form and decodes. The labels are those that a reader of the screen hears. */
export async function decode(page, { prompt, strategy, tokens = 60, temperature = 0, further = "", compare = false }) {
    await page.getByRole("textbox", { name: "Prompt" }).fill(prompt);
    await page.getByLabel("Strategy").selectOption(strategy);
    await page.getByLabel("Maximal tokens").fill(String(tokens));
    await page.getByLabel("Temperature").fill(String(temperature));
    await page.getByLabel("Seed").fill("1");
    await page.locator("#further").evaluate((field, value) => { field.value = value; }, further);
    await page.getByLabel("Compare with standard").setChecked(compare);
    await page.getByRole("button", { name: "Decode" }).click();
}

export async function decoded(page, options) {
    await decode(page, options);
    await page.waitForFunction(() => !document.getElementById("decode").disabled);
}
