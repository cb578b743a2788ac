"""What other clients than OpenAI's for Python get: that for JavaScript, and LangChain."""

import os
import pathlib
import shutil
import subprocess

import pydantic
from langchain_openai import ChatOpenAI, OpenAI

from checks import equal, expect
from server import ROOT

QUESTION = "How many legs do three cats have?"
NODE = pathlib.Path(__file__).resolve().parent / "node"


def javascript(server):
    """node/client.mjs, with the package that node/package-lock.json pins."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "skipped, because Node.js is not installed"
    folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "servers-node")
    folder.mkdir(exist_ok=True)
    made = folder / "made-of.json"
    lock = (NODE / "package-lock.json").read_text()
    if not made.exists() or made.read_text() != lock:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE / name, folder)
        done = subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder, text=True,
                              capture_output=True, timeout=300)
        if done.returncode:
            return f"skipped, because the package cannot be installed ({done.stderr.strip()[-200:]})"
        made.write_text(lock)
    shutil.copy(NODE / "client.mjs", folder)
    url = f"http://127.0.0.1:{server.port}/v1"
    command = ["node", folder / "client.mjs", url, server.model]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    equal((done.returncode, done.stdout), (0, "ok\n"), f"client.mjs: {done.stderr}")
    expect(server.idle(5) is not None, "a stream that the client left goes on")


class Legs(pydantic.BaseModel):
    legs: int


def langchain(server):
    """Chats whole, streamed, in batches, and by a schema; and a completion."""
    common = {"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": "none", "model": server.model,
              "temperature": 0, "max_retries": 0}
    chat = ChatOpenAI(max_tokens=16, **common)
    answer = chat.invoke(QUESTION)
    wanted = server.chat(QUESTION, max_tokens=16, temperature=0)
    equal(answer.content, wanted.choices[0].message.content, "a chat")
    equal(answer.usage_metadata["output_tokens"], 16, "usage")
    equal("".join(chunk.content for chunk in chat.stream(QUESTION)), answer.content, "a streamed chat")
    turns = [("user", QUESTION), ("assistant", "Twelve."), ("user", "Why?")]
    equal([each.content for each in chat.batch([QUESTION, turns])][0], answer.content, "a batch")
    legs = ChatOpenAI(max_tokens=80, **common).with_structured_output(Legs, method="json_schema").invoke(QUESTION)
    expect(isinstance(legs, Legs), f"{legs!r} is not of the schema")
    text = OpenAI(max_tokens=8, **common).invoke("Once upon")
    equal(text, server.complete("Once upon", max_tokens=8, temperature=0).choices[0].text, "a completion")


CHECKS = (javascript, langchain)
